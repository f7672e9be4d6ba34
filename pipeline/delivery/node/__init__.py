"""The DICOM node: images come by C-STORE, results go by C-STORE or STOW-RS."""
