"""What names say of the sequence."""

import pytest

from cinema_fast.common.sequences import SEQUENCES, sequence_of, sequences_of

NAMES = {
    "cine": ("cine", "cine_sax", "C0", "bSSFP", "sax_ssfp", "trufi", "cineMRI", "c0_lax_4c", "b-SSFP cine"),
    "lge": ("lge", "lge_sax", "LGE", "sax_lge", "DE", "de_lax_2c", "psir_sax", "PSIR_SSFP", "late_enhancement",
            "viability", "late_gadolinium_enhancement", "Late Enh", "delayed-enhancement", "lategad_sax"),
    "t1map": ("t1map", "t1map_lax_4c", "T1_map", "T1 Map", "t1_mapping_sax", "MOLLI", "shmolli_sax", "sasha",
              "native_t1_sax", "t1_native"),
    "t2map": ("t2map", "t2map_sax", "T2_map", "T2 mapping", "t2maps"),
    "t2w": ("t2w", "T2", "t2_sax", "t2_w", "T2-weighted", "stir_sax", "t2_stir", "tirm", "t2_tse_sax"),
    "t1w": ("t1w", "t1w_sax", "T1_weighted", "t1_tse_sax"),
    # no sequence; T1, which may be a map or an image; T2*; parts of words; two sequences at once
    None: ("sax", "lax_4c", "rvot", "", "t1", "T1_sax", "sax_t1", "T2*", "t2_star", "t2star_sax", "T2* map", "ecv",
           "delay_sax", "side_sax", "decent", "cinema", "c01", "MRI", "0000", "cine_de_4c", "lge_t2w_sax", "t1map_lge"),
}  # fmt: skip


@pytest.mark.parametrize("sequence", NAMES)
def test_names(sequence):
    assert {name: sequence_of(name) for name in NAMES[sequence]} == dict.fromkeys(NAMES[sequence], sequence)
    assert sequence is None or sequence_of(sequence) == sequence


def test_every_sequence_has_names():
    assert set(SEQUENCES) | {None} == set(NAMES)


def test_of_a_view_and_its_channels():
    for view, channels, expected in (
        ("sax", (), ("cine",)), ("rvot", (), ("cine",)), ("cine_de_4c", (), ("cine",)),  # frames over time
        ("t1map_sax", (), ("t1map",)),
        ("sax", ("LGE",), ("lge",)), ("lge", ("file7",), ("lge",)), ("sax", ("file7",), (None,)),
        ("t1map_sax", ("PSIR",), ("t1map",)),  # how one calls a view counts more than the name of its file
        ("sax", ("C0", "DE", "T2"), ("cine", "lge", "t2w")), ("lge_sax", ("a", "T2", "b"), ("lge", "t2w", "lge")),
        ("sax", ("T1", "bSSFP"), (None, "cine")),
    ):  # fmt: skip
        assert sequences_of(view, channels) == expected, (view, channels)
