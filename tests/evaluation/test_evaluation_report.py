"""The report: one file that opens anywhere, says everything, and lets no name out of its place."""

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_cases import HOSTILE, assessment, case
from PIL import Image

from cinema_fast.evaluation import report_figures
from cinema_fast.evaluation.report_figures import classification_png, distances_png
from cinema_fast.evaluation.results import write_results
from cinema_fast.figures.overlays import (
    COLOURS,
    PANEL,
    STILL,
    cycle_gif,
    landmarks_png,
    outline,
    stills_png,
    under_words,
)
from cinema_fast.figures.prediction import landmarks_gif
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.cases import exhibit_of
from cinema_fast.metrics.classification import Classification
from cinema_fast.metrics.map_scoring import MapScoring
from cinema_fast.metrics.segmentation import CLASSES


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    made = assessment()
    made.leave_out("<img src=http://elsewhere/x.png>", "no readable frame & more")
    table = {"sex": {f"heart-{i}": "mf"[i % 2] for i in range(5)} | {HOSTILE: "<b>m"}}
    write_results(made, folder, about={"model": "runs/<a>", "views": ["sax", "lax_4c"]}, table=table)
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_nothing_refers_outside_the_file(html):
    tags = Page(html).tags
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "a", "form", "video", "b")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "background", "poster"):
            assert name not in attributes or attributes[name].startswith("data:image/")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and not any("style" in a for _, a in tags)
    (policy,) = [a["content"] for tag, a in tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:")


def test_names_are_text_and_nothing_else(html):
    page = Page(html)
    shown = HOSTILE.replace("\udcff", "\\udcff")
    assert shown in page.text and "<script" not in html
    assert "<img src=http://elsewhere/x.png>" in page.text and "no readable frame & more" in page.text
    assert "runs/<a>" in page.text and "sax, lax_4c" in page.text and "<b>m" in page.text


def test_every_part_is_there_with_its_pictures(html):
    page = Page(html)
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Label maps", "Cardiac function at the labelled frames", "Classes of the ejection fraction",
        "Cardiac function of the whole cycle", "Numbers", "Repeated measurements", "Classes", "Landmarks", "By sex",
        "Flags", "Left out",
    ]  # fmt: skip
    pictures = [a for tag, a in page.tags if tag == "img"]
    for one in pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(one["src"].split(",", 1)[1], validate=True)))
        picture.load()
        assert np.asarray(picture.convert("L")).std() > 5, one["alt"]
    alts = " ".join(one["alt"] for one in pictures)
    for what in ("Dice of every", "prediction over the cycle", "truth above", "volume over time", "confusion, ROC",
                 "LV ejection fraction (%), agreement", "age (years), agreement", "within a distance"):  # fmt: skip
        assert what in alts
    assert "prediction over the cycle, slice " in alts and "Outlines: " in page.text
    for k, (name, colour) in enumerate(zip(CLASSES.values(), COLOURS)):
        assert f'<strong class="c{k}">{name}</strong>' in html and f".c{k} {{ color: rgb{colour}; }}" in html
    assert "lv_edv_implausible" in page.text and "lv_edv_ml is outside 40 to 500" in page.text  # of small boxes
    assert "worst of 6: " in page.text and "middle of 6: " in page.text and "best of 6: " in page.text
    assert "disease: DCM from 0.5" in page.text and "of 6 studies" in page.text and "Worst cases" in page.text
    assert len(html) < 3_000_000


def test_an_outline_is_the_rim_of_its_class():
    image, labels = np.full((6, 6), 255, np.uint8), np.zeros((6, 6), np.uint8)
    labels[1:5, 1:5] = 3
    labels[2:4, 2:4] = 1
    drawn = outline(image, labels, zoom=3)
    assert drawn.shape == (18, 18) and (drawn[:3] == 31).all()
    assert (drawn[3, 3:15] == 32 + 2).all() and (drawn[6:12, 6] == 32).all()
    assert (drawn[7:11, 7:11] == 31).all()  # inside a class the image stays
    assert drawn[4, 4] == 31 and drawn[5, 6] == 34  # a class of three pixels has two rims and what is between


def test_words_are_written_in_the_palette_alone():
    """Greys of smoothed letters would be other classes' colours."""
    picture = np.full((200, 50), 7, np.uint8)
    drawn = under_words(picture, [("frame 3 of 25", 31), ("LV", 34)])
    assert drawn.shape[0] == 200 and (drawn[:, -50:] == 7).all()
    strip = drawn[:, :-50]
    assert set(np.unique(strip)) == {0, 31, 34} and (strip == 34).any(1).argmax() > (strip == 31).any(1).argmax()
    assert under_words(picture[:20], [("a name that is longer than the picture", 31)]).shape == (20, drawn.shape[1])


def test_the_moving_picture_is_the_cycle_at_the_hearts_pace():
    exhibit = exhibit_of(case("a", frame_time_ms=100.0), [], MapScoring())
    moving = Image.open(io.BytesIO(cycle_gif(exhibit)))
    assert moving.n_frames == 6 and moving.info["duration"] == 100 and moving.info["loop"] == 0
    lv = [int((np.asarray(moving.convert("RGB")) == COLOURS[2]).all(-1).sum()) for t in range(6) if not moving.seek(t)]
    assert lv[0] == max(lv) and lv[3] == min(lv) > 0  # the rim of the LV shortens from ED to ES
    still = Image.open(io.BytesIO(stills_png(exhibit.stills[:3])))
    x, y = exhibit.cycle.shape[1:]
    zoom = -(-STILL // max(x, y))
    assert still.size == (3 * (zoom * x + 4), 2 * (zoom * y + 4))  # three slices of a frame, truth and prediction
    assert min(max(moving.size) - PANEL, zoom * max(x, y) - STILL) >= 0  # large enough to see a wall


def test_the_slice_named_is_the_slice_drawn():
    study = case("a")
    exhibit = exhibit_of(study, [], MapScoring())
    z = int(re.fullmatch(r"slice (\d) of 0 to 4", exhibit.slice)[1])
    x, y = exhibit.cycle.shape[1:]
    drawn = [k for k in range(5) if any((exhibit.cycle[0] == study.image[0, i : i + x, j : j + y, k]).all()
                                        for i in range(25 - x) for j in range(21 - y))]  # fmt: skip
    assert drawn == [z]


def test_every_landmark_has_its_colour_and_its_name_in_it():
    image = np.eye(80, dtype=np.float32)[..., None]
    cine = SimpleNamespace(shape=image.shape, frame_time_ms=None, frame=lambda t: image)
    points = np.array([[[20.0, 50], [60, 20], [40, 65]]] * 2)

    def coloured(names):
        moving = Image.open(io.BytesIO(landmarks_gif(cine, points, names))).convert("RGB")
        assert max(moving.size) >= PANEL
        return [np.argwhere((np.asarray(moving) == colour).all(-1)) for colour in COLOURS[:3]]

    for k, (bare, named) in enumerate(zip(coloured(["", "", ""]), coloured(["left\nend", "apex", "base"]))):
        strip = named[named[:, 0] < 14]
        assert len(bare) and len(named) - len(strip) == len(bare) and len(strip) > 10, k


def test_landmarks_are_drawn_where_they_are():
    """A ring around the true one and a cross at the predicted one, each landmark in its colour; the worst first."""
    made, how = Assessment(), {"image": np.zeros((80, 60), np.uint8), "spacing_mm": (2.0, 2.0)}
    truth = {"apex": (40.0, 20.0), "base": (20.0, 80.0)}
    for frame, off in enumerate((0.0, 40.0, 8.0)):
        made.add_landmarks("a" * (1 + frame), "lax_4c", frame, truth | {"apex": (40.0, 20 + off)}, truth, **how)
    made.add_landmarks("d", "lax_4c", 0, {}, truth, **how)
    chosen = made.galleries["landmarks", "lax_4c"].chosen()
    assert [(why, exhibit.study) for why, exhibit in chosen][:2] == [("worst", "d"), ("worst", "aa")]
    picture = np.asarray(Image.open(io.BytesIO(landmarks_png(chosen[1][1]))).convert("RGB")).swapaxes(0, 1)[:, 28:]
    zoom = picture.shape[0] // 80
    where = np.argwhere((picture == COLOURS[0]).all(-1))
    ring, cross = (np.array(at) * zoom + zoom // 2 for at in ((20, 10), (20, 30)))
    for middle in (ring, cross):
        near = where[np.abs(where - middle).max(1) <= 9]
        assert len(near) > 20 and np.abs(near.mean(0) - middle).max() < 1, middle
    assert (picture[tuple(cross)] == COLOURS[0]).all() and not picture[tuple(ring)].any()
    assert len(np.argwhere((picture == COLOURS[1]).all(-1))) > 40


@pytest.mark.parametrize("draw", [
    lambda: distances_png("far", {f"mark {k}": [1.0, 20.0, np.inf] for k in range(3)}),
    lambda: classification_png("poor", Classification([0, 1, 2] * 4, ("a", "b", "c"), np.full((12, 3), 1 / 3)), 0.5),
])  # fmt: skip
def test_legends_cover_no_panel(monkeypatch, draw):
    seen = []
    monkeypatch.setattr(report_figures, "_png", lambda figure, title: seen.append(figure) or b"")
    draw()
    (figure,) = seen
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert not any(box.overlaps(axes.get_tightbbox()) or axes.get_legend() for axes in figure.axes)


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1, 1], [0, 1, 0]])
def test_one_class_is_drawn_as_far_as_it_can_be(truth):
    p = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    png = classification_png("a $x_$ title", Classification(truth, ("a$", "b_$^"), p), 0.5)
    assert Image.open(io.BytesIO(png)).width > 900
