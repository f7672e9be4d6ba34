"""Why a file is not used, and what is odd about one that is: two closed lists.

Every file that comes in gets one verdict. Details are fixed words, sizes and names from the DICOM dictionary, never
text from a file or from a library's exception, since both can carry patients' names.
"""

from __future__ import annotations

from dataclasses import dataclass

REASONS = {
    "symbolic_link": "a link; ingest.links: inside follows, once, those that lead to a place under data.studies",
    "left_out": "left out by data.include or data.exclude",
    "special_file": "a device, pipe or socket",
    "unreadable": "the file could not be opened or read",
    "empty_file": "the file has no bytes",
    "too_large": "the file or its decoded pixels exceed ingest.max_file_mb or ingest.max_pixels_mb",
    "unsafe_member": "an archive member with an absolute, escaping or repeated name, or a link",
    "encrypted": "an encrypted archive member",
    "archive": "an archive inside an archive, or one without the name of a zip file",
    "damaged_archive": "the archive cannot be read, or its members overlap",
    "unknown_format": "neither DICOM, NIfTI, PNG, JPEG, TIFF, PGM, PPM nor .npy",
    "suspicious_preamble": "a DICOM file that is also a program, script, document or archive",
    "damaged_header": "the header cannot be read or contradicts itself",
    "damaged_pixels": "the pixels are cut off, contradict the header or cannot be decoded",
    "unsupported_encoding": "no installed decoder for this pixel encoding",
    "decoder_crash": "the process that decoded the file died, twice; it may use ingest.max_memory_mb",
    "timeout": "decoding took longer than ingest.timeout_s, twice",
    "not_an_image": "a DICOM object without an image: report, presentation state, segmentation, directory ...",
    "modality": "a modality outside ingest.modalities",
    "secondary_capture": "a secondary capture, which often shows a name; ingest.secondary_capture accepts them",
    "burned_in_text": "the header says that text is burned in; ingest.burned_in_annotation accepts such images",
    "multi_frame": "several pictures in one file, or frames whose places its header does not state",
    "derived": "a derived image, which ingest.derived refuses",
    "mosaic": "many slices tiled in one picture",
    "image_type": "a phase, real or imaginary image, or a kind that ingest.image_types does not name",
    "for_processing": "raw values for processing, not for presentation; ingest.intent accepts them",
    "few_slices": "a stack of fewer slices than ingest.min_slices in a study that has a larger one",
    "colour": "a colour image; preprocess.channels: colour keeps it, ingest.colour: luminance takes its brightness",
    "too_small": "a side shorter than ingest.min_side",
    "axes": "a volume among pictures or a picture among volumes: ingest.axes, else preprocess.image_size, says which",
    "unclear_orientation": "right and left are not stated, or these or the size of voxels twice and differently; see "
    "ingest.orientation",
    "bad_geometry": "not three-dimensional, or a position, orientation or matrix missing or impossible",
    "localiser": "an overview image for planning, not a slice of the volume",
    "mixed_orientation": "orientation, size or pixel spacing differs from most slices of its series",
    "missing_slices": "slices of the series are missing between others",
    "uneven_spacing": "the slices of the series do not lie on a regular grid",
    "gantry_tilt": "slices are stacked at an angle, not along the slice normal",
    "duplicate_slices": "several slices at one position, and nothing in the headers tells the volumes apart",
    "bad_values": "values that are not finite real numbers, or a rescaling that destroys them",
    "no_channel": "neither its description nor its name says that it is one of the channels of the dataset's card",
    "ambiguous_channel": "several series or files of a study are one channel, or one is several; see card.channels",
    "missing_channel": "a channel of the dataset's card is missing; ingest.missing_channels: zero takes zeros",
    "frame_of_reference": "channels of one study state different frames of reference: their places cannot be compared",
    "fields_of_view_apart": "a channel covers too little of what the first one shows; see ingest.min_overlap",
    "exam_contradicts": "header and label table name different views or sides; columns.exam_from says whom to believe",
    "no_patient": "no patient identifier in header or label table, or only a placeholder that several studies share",
    "duplicate": "the same image or slice of the same patient as another file, which was kept",
    "uid_conflict": "different images under one SOP Instance UID; none is trusted",
    "mask_format": "a mask that is neither NIfTI, PNG, TIFF nor DICOM SEG, or cannot be read",
    "mask_contours": "contours (RTSTRUCT) as a mask: convert them to DICOM SEG or NIfTI, in 3D Slicer or plastimatch",
    "mask_size": "a mask of another size than its image as stored",
    "mask_position": "a mask whose voxels do not lie on those of its image: direction, spacing or place differ",
    "mask_reference": "a DICOM SEG about other images than it is named for, or in another frame of reference",
    "mask_values": "values that label.mask.structures does not name, no whole numbers, or segments that overlap",
    "mask_without_image": "a mask whose image was refused, or is a copy of another one",
    "mask_ambiguous": "one of several masks of an image, or a mask that fits several images",
    "ambiguous_name": "the name differs from another file's in nothing but its spelling (Unicode form, separators)",
}

FLAGS = {
    "blank": "all pixels are equal",
    "two_valued": "only two different values, but for what lossy compression adds: a mask, not a picture",
    "few_grey_levels": "fewer than 32 different grey values, as in a label map",
    "clipped": "a large share of the pixels has the lowest or the highest value",
    "constant_border": "an edge strip of at least a tenth of a side has a single value",
    "extreme_aspect": "much longer than wide, or the reverse",
    "spacing_unknown": "physical pixel size is not stated",
    "spacing_at_detector": "pixel size at the detector; what lies in front of it is magnified by an unstated factor",
    "spacing_assumed": "a single slice that states no thickness; a slice spacing of 1 mm was assumed",
    "spacing_implausible": "physical pixel size outside the limits of the config",
    "slices_refused": "other slices of the series were refused; the volume may not cover all that was scanned",
    "colour_reduced": "a colour image, reduced to its luminance",
    "transparent_on_black": "a picture with transparent pixels, taken as it looks on black",
    "profile_converted": "colours converted to sRGB from the colour space that the file names",
    "profile_ignored": "the file's colour profile cannot be used; its colours are taken for sRGB",
    "photometric_contradicts": "code stream and header contradict each other in how colours are stored; the code "
    "stream was followed",
    "grey_repeated": "a grey image in a colour task; its values are taken for each of the three channels",
    "channels_resampled": "channels on other grids than the first one, brought to it by linear interpolation",
    "zeros_for_channel": "a channel that the dataset's card lists is missing; zeros stand for it",
    "unexpected_modality": "a modality that the dataset card does not expect",
    "unexpected_view": "a view that the dataset card does not expect",
    "unexpected_body_part": "a body part that the dataset card does not expect",
    "inversion_suspected": "looks like the negative of the average image of its kind",
    "window_ignored": "the header's display window cannot be used or hides the picture; the full range was taken",
    "outside_masked": "a CT number below -1024 fills what was not scanned; taken as padding",
    "aspect_corrected": "pixels that are not square, as the header says, were made square",
    "no_preamble": "a DICOM file without its preamble; the transfer syntax was inferred",
    "padding_ignored": "the header declares every pixel to be padding",
    "rotated": "turned or mirrored as the file's orientation tag says",
    "units_assumed": "the file does not say its unit of length; millimetres assumed",
    "orientation_assumed": "the file does not say how it lies; indices taken to rise towards left, anterior, superior",
    "orientation_contradicts": "the file says in two ways how it lies, and they differ; its sform was taken",
    "spacing_contradicts": "the file states the size of its voxels twice and differently; that of its sform was taken",
    "padding_of_maker": "more pixels at the lowest value than in another maker's CT (padding?); see preprocess.window",
    "no_field_of_view": "no disc in a dark surround was found; the whole image was taken (preprocess.crop)",
    "duplicate_across_patients": "the same pixels as an image of another patient",
    "near_duplicate_across_patients": "nearly the same picture as an image of another patient",
}
# Decided by comparison with other images, or when arrays are made, when none can be refused any more.
COMPARED_FLAGS = (
    "no_field_of_view",
    "inversion_suspected",
    "padding_of_maker",
    "duplicate_across_patients",
    "near_duplicate_across_patients",
)
# A flag that ingest.refuse names is a reason by itself.
REASONS |= {flag: f"{text} (ingest.refuse)" for flag, text in FLAGS.items() if flag not in COMPARED_FLAGS}

# What may turn out otherwise the next time is not taken over from an earlier ingest.
PASSING_REASONS = {"unreadable", "timeout", "decoder_crash", "too_large"}


@dataclass(frozen=True)
class Refusal:
    """A verdict against a file: a reason from REASONS and a detail that is safe to print."""

    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason} is not a reason for quarantine")


class Refused(Exception):
    """Raised where a file turns out to be unusable."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.refusal = Refusal(reason, detail)
