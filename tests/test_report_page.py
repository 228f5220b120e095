"""The HTML pages: valid, self-contained, escaped, with links that lead somewhere."""

import os
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from PIL import Image

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report import page as page_module
from pix2pixhd_fast.report.galleries import ResultsPage, TrainingPage
from pix2pixhd_fast.report.page import Page

VOID = {"meta", "img", "br", "link", "hr", "input"}
AWKWARD = [
    "plain",
    "two words",
    "50% #1?",
    "a&amp;b<c>\"d\"'e'",
    "Straße 北京",
    "%41+&x=1;y",
    os.fsdecode(b"not utf-8 \xff\xfe"),
]


class Reader(HTMLParser):
    """Collects pictures, links and texts by element; checks that elements are closed in order."""

    def __init__(self, path):
        super().__init__()
        self.folder, self.open = path.parent, []
        self.images, self.links, self.texts, self.ids, self.metas = [], [], {}, [], []
        self.markup = path.read_text(encoding="utf-8")
        self.feed(self.markup)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"an attribute of <{tag}> is there twice"
        values = dict(attributes)
        if tag == "img":
            assert values["alt"]
            self.images.append(values)
        if tag == "meta":
            self.metas.append(values)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in values:
                self.links.append(values[name])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1] if self.open else "", []).append(data.strip())

    def file_of(self, link):
        """Resolve a link as a browser does: drop query and fragment, decode the percent signs."""
        parts = urlsplit(link)
        assert not parts.scheme and not parts.netloc, f"{link} leads away"
        return os.path.join(os.fsencode(self.folder), unquote_to_bytes(parts.path))


def read(folder):
    reader = Reader(folder / "index.html")
    for link in reader.links:
        assert os.path.isfile(reader.file_of(link)), link
    for away in ("http://", "https://", "//cdn", "@import", "url("):
        assert away not in reader.markup
    return reader


def picture(seed=0, height=8, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(page, name, size=(20, 10)):
    Image.new("RGB", size).save(page.images / name, format="PNG")


def test_a_page_shows_everything_in_order(tmp_path):
    page = Page(tmp_path / "new" / "web", "Run 1")
    put(page, "a.png")
    put(page, "b.png")
    page.text("What this is.")
    page.figure("a.png", "losses")
    page.header("First")
    page.pictures([("a.png", "input"), ("b.png", "output")], width=300)
    page.table(["what", "ms"], [["G", 1.23456], ["D", 20.0]])
    page.save()
    reader = read(tmp_path / "new" / "web")
    assert reader.texts["h1"] == reader.texts["title"] == ["Run 1"]
    assert reader.texts["figcaption"] == ["losses", "input", "output"]
    assert [image["alt"] for image in reader.images] == ["losses", "input", "output"]
    assert {(image["width"], image["height"]) for image in reader.images} == {("20", "10")}
    assert reader.texts["th"] == ["what", "ms"]
    assert reader.texts["td"] == ["G", "1.235", "D", "20"]
    assert "--count: 2; --width: 300px" in reader.markup
    places = [reader.markup.index(text) for text in ("What this is", "losses", "First", "1.235")]
    assert places == sorted(places)
    assert reader.metas[0] == {"charset": "utf-8"}
    assert not any("refresh" in meta.values() for meta in reader.metas)


def test_saving_again_shows_what_was_added_since(tmp_path):
    page = Page(tmp_path, "t")
    page.header("one")
    page.save()
    page.header("two")
    page.save()
    assert read(tmp_path).texts["h2"] == ["one", "two"]


def test_an_empty_page_is_valid_and_an_empty_row_is_nothing(tmp_path):
    page = Page(tmp_path, "t")
    page.pictures([])
    page.table(["a"], [])
    page.save()
    assert read(tmp_path).images == []


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert('&\"')</script></title></style>"
    page = Page(tmp_path, evil)
    put(page, "a.png")
    page.header(evil)
    page.text(evil)
    page.table([evil], [[evil]])
    page.pictures([("a.png", evil)])
    page.figure("a.png", "tab\tand\x00\x1b\udcff")
    page.save()
    reader = read(tmp_path)
    for tag in ("title", "h1", "h2", "p", "th", "td"):
        assert reader.texts[tag] == [evil]
    assert reader.images[0]["alt"] == evil
    assert reader.texts["figcaption"][1] == "tab\tand\ufffd\ufffd\ufffd"
    assert len(reader.texts["script"]) == 1, "only the page's own script"


def test_a_refreshing_page_also_does_so_without_a_script(tmp_path):
    page = Page(tmp_path, "t", refresh=30)
    put(page, "a.png")
    page.figure("a.png", "a")
    page.save()
    reader = read(tmp_path)
    assert {"http-equiv": "refresh", "content": "30"} in reader.metas
    assert '<body data-refresh="30">' in reader.markup
    first = reader.images[0]["src"]
    os.utime(page.images / "a.png", (1, 1))
    again = Page(tmp_path, "t", refresh=30)
    again.figure("a.png", "a")
    again.save()
    assert read(tmp_path).images[0]["src"] != first, "a changed picture is fetched again"


def test_numbers_stand_to_the_right(tmp_path):
    page = Page(tmp_path, "t")
    page.table(["name", "count", "mixed"], [["a", 1, 2], ["b", 22, "none"]])
    page.save()
    assert read(tmp_path).markup.count('class="number"') == 3
    with pytest.raises(InputError, match="a row of 3 cells is needed, got .'a', 1."):
        page.table(["name", "count", "mixed"], [["a", 1]])


@pytest.mark.parametrize("name", ["missing.png", "../index.html", "", "sub/a.png"])
def test_a_picture_that_is_not_there_is_refused(tmp_path, name):
    page = Page(tmp_path, "t")
    page.save()
    with pytest.raises(InputError, match="must be a picture in the images folder"):
        page.pictures([(name, "x")])


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "web").write_text("")
    with pytest.raises(InputError, match="web.* cannot be written"):
        Page(tmp_path / "web", "t")


def test_a_failure_while_saving_leaves_the_old_page(tmp_path, monkeypatch):
    page = Page(tmp_path, "old")
    page.save()
    page.title = "new"

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module.os, "replace", fail)
    with pytest.raises(InputError, match="index.html cannot be written: No space left"):
        page.save()
    monkeypatch.undo()
    assert read(tmp_path).texts["title"] == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["images", "index.html"]


def test_only_pictures_further_down_wait_until_they_are_scrolled_to(tmp_path):
    page = Page(tmp_path, "t")
    put(page, "a.png")
    page.pictures([("a.png", str(n)) for n in range(40)])
    page.save()
    lazy = [image.get("loading") == "lazy" for image in read(tmp_path).images]
    assert not any(lazy[:8]) and all(lazy[20:])


def test_a_damaged_picture_does_not_break_the_page(tmp_path):
    page = Page(tmp_path, "t")
    (page.images / "half.jpg").write_bytes(b"\xff\xd8\xff")
    page.figure("half.jpg", "half")
    page.save()
    assert "width" not in read(tmp_path).images[0]


def test_results_with_awkward_names_can_be_found(tmp_path):
    page = ResultsPage(tmp_path, "label2city, test, epoch 20", 256, width_factor=2.0)
    for number, stem in enumerate(AWKWARD):
        page.add(stem, {"input_label": picture(number), "synthesized_image": picture(99)})
    page.save()
    reader = read(tmp_path)
    assert len(reader.images) == 2 * len(AWKWARD)
    assert reader.texts["h2"][:-1] == AWKWARD[:-1]
    assert reader.texts["figcaption"][:2] == ["input label", "synthesized image"]
    assert (tmp_path / "images" / "50% #1?_input_label.jpg").is_file()
    found = {reader.file_of(image["src"]) for image in reader.images}
    assert len(found) == len(reader.images)
    assert Image.open(tmp_path / "images" / "plain_input_label.jpg").size == (32, 8)


def test_results_of_one_name_do_not_overwrite_each_other(tmp_path):
    page = ResultsPage(tmp_path, "t", 256)
    for seed, stem in enumerate(["a", "a", "a-2", "x/y", "x_y"]):
        page.add(stem, {"real_image": picture(seed)})
    page.save()
    reader = read(tmp_path)
    assert reader.texts["h2"] == ["a", "a-2", "a-2-2", "x_y", "x_y-2"]
    contents = {open(reader.file_of(image["src"]), "rb").read() for image in reader.images}
    assert len(contents) == 5


def test_saving_results_writes_no_picture_again(tmp_path):
    page = ResultsPage(tmp_path, "t", 256)
    page.add("a", {"real_image": picture()})
    page.save()
    before = (tmp_path / "images" / "a_real_image.jpg").stat()
    page.add("b", {"real_image": picture()})
    page.save()
    after = (tmp_path / "images" / "a_real_image.jpg").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(read(tmp_path).images) == 2


def shown(seed):
    names = ("input_label", "synthesized_image", "real_image")
    return {name: picture(seed + place) for place, name in enumerate(names)}


def test_the_training_page_shows_the_newest_epoch_first(tmp_path):
    curves = tmp_path / "loss_curves.png"
    Image.new("RGB", (60, 20)).save(curves)
    page = TrainingPage(tmp_path / "web", "label2city", 512)
    for epoch in (1, 2, 2, 10):
        page.update(epoch, shown(epoch), curves)
    reader = read(tmp_path / "web")
    assert reader.texts["h2"] == ["Epoch 10", "Epoch 2", "Epoch 1"]
    assert reader.texts["figcaption"][:4] == [
        "losses",
        "input label",
        "synthesized image",
        "real image",
    ]
    assert {"http-equiv": "refresh", "content": "30"} in reader.metas
    assert "label2city" in reader.texts["h1"][0]
    assert len(os.listdir(tmp_path / "web" / "images")) == 1 + 3 * 3
    assert (tmp_path / "web" / "images" / "epoch002_synthesized_image.jpg").is_file()


def test_a_resumed_run_shows_earlier_epochs_but_not_abandoned_ones(tmp_path):
    first = TrainingPage(tmp_path, "n", 512)
    for epoch in (1, 2, 3, 1000):
        first.update(epoch, shown(epoch))
    (tmp_path / "images" / ".0123.tmp").write_bytes(b"")
    (tmp_path / "images" / "notes.txt").write_text("mine")
    TrainingPage(tmp_path, "n", 512).update(2, {"real_image": picture(7)})
    reader = read(tmp_path)
    assert reader.texts["h2"] == ["Epoch 2", "Epoch 1"]
    assert reader.texts["figcaption"][:3] == ["real image", "input label", "synthesized image"]
    assert (tmp_path / "images" / "epoch1000_real_image.jpg").is_file()


def test_curves_that_lie_in_the_page_are_not_copied(tmp_path):
    page = TrainingPage(tmp_path, "n", 512)
    curves = tmp_path / "images" / "loss_curves.png"
    Image.new("RGB", (60, 20)).save(curves)
    inode = curves.stat().st_ino
    page.update(1, {}, curves)
    assert curves.stat().st_ino == inode
    assert [image["alt"] for image in read(tmp_path).images] == ["losses"]
    with pytest.raises(InputError, match="nothing.png must be the picture of the losses"):
        page.update(1, {}, tmp_path / "nothing.png")
