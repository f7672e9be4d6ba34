"""Folders and zips of studies, examined file by file."""
