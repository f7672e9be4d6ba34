"""One file each: DICOM, NIfTI, pictures, arrays."""
