"""The model's shapes on a store: views that the preset lacks, and sizes by the number of axes."""

import pytest
from labelled_discs import SIZES, SPACING, write_discs

from cinema_fast.data.store.store import CineStore
from cinema_fast.models.config import preset
from cinema_fast.train.setup import fit_to_store

BASE = preset("cinema-demo")


@pytest.fixture
def store_of(tmp_path, monkeypatch):
    """A function: a store of discs whose views have these names, {name: sax or lax_4c}."""

    def make(**names: str) -> CineStore:
        for name, like in names.items():
            monkeypatch.setitem(SIZES, name, SIZES[like])
            monkeypatch.setitem(SPACING, name, SPACING[like])
        return CineStore(write_discs(tmp_path / "-".join(names), 4, views=tuple(names)))

    return make


def test_a_named_view_takes_the_shape_of_its_plane(store_of):
    store = store_of(sax="sax", lge_sax="sax", lge="sax", t1="lax_4c", t1_lax_3c="lax_4c")
    config = fit_to_store(BASE, store, ("lge_sax", "lge", "t1", "t1_lax_3c"), "cinema-demo")
    assert config.views == ("lge", "lge_sax", "t1", "t1_lax_3c")
    assert config.image_size == {"lge": (32, 32, 4), "lge_sax": (32, 32, 4), "t1": (32, 32), "t1_lax_3c": (32, 32)}
    for view, like in (("lge_sax", "sax"), ("lge", "sax"), ("t1", "lax_2c"), ("t1_lax_3c", "lax_3c")):
        assert config.token_size(view) == BASE.token_size(like) and config.in_chans[view] == BASE.in_chans[like]
    again = fit_to_store(config, store, config.views, "cinema-demo")  # as in a resumed run
    assert again == config


def test_only_a_named_view(store_of):
    store = store_of(sax="sax", lge_sax="sax")
    for views, named in (((), None), (("sax", "lge_sax"), ())):
        with pytest.raises(ValueError, match=r"has no view 'lge_sax', which .* train on others with --views sax, or on "
                                             r"this one by naming it: --views lge_sax"):  # fmt: skip
            fit_to_store(BASE, store, views, "cinema-demo", named=named)
    long_axis = fit_to_store(BASE, store_of(lax_4c="lax_4c"), (), "cinema-demo")
    with pytest.raises(ValueError, match="; train on this one by naming it: --views lge_sax"):  # there are no others
        fit_to_store(BASE, store_of(lge_sax="sax"), (), "cinema-demo")
    with pytest.raises(ValueError, match=r"has no view .lge_sax., which .*; its views are lax_4c$"):
        fit_to_store(long_axis, store, ("lge_sax",), "run")  # no view of three axes to take it from
    with pytest.raises(ValueError, match="has no view 'sax'"):  # nothing takes the place of the views by name
        fit_to_store(fit_to_store(BASE, store, ("lge_sax",), "cinema-demo"), store, ("sax",), "run")


@pytest.mark.parametrize(("view", "hint"), [("lge_sa", "did you mean"), ("sax,lge_sax", "separate views by")])
def test_views_that_the_store_lacks(store_of, view, hint):
    with pytest.raises(ValueError, match=rf"--views: .* has no view '{view}'; {hint}"):
        fit_to_store(BASE, store_of(sax="sax", lge_sax="sax"), (view,), "cinema-demo")
