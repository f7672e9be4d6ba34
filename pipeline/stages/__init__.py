"""The ten stages: one file each, one public function each. They meet only through artifacts."""
