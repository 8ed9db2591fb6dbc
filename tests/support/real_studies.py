"""Options that prepare the real studies beside the checkout."""


PREPARE = {
    "cine": (
        "--pattern", "{view}.nii.gz", "--aliases", "sax=sax_4d_6slices", "lax_2c=Se8_2ch", "lax_3c=Se7_4ch_or_3ch",
        "lax_4c=Se6_4ch_or_3ch",
    ),
    "cmr": ("--pattern", "{id}_{view}_{frame}.nii.gz"),
}  # fmt: skip
