"""The viewer of a volume report: what its page holds, and what a browser makes of it.

The slow tests click in a headless Chromium: one on the PATH, driven by playwright (no requirement).
"""

import base64
import json
import re
import shutil
import zlib

import numpy as np
import pytest

from cldm_jax.data.pet_checks import Check
from cldm_jax.report import viewer, volume_page

SHAPE = (40, 44, 30)
CENTRE = (20, 22, 15)
HOT = (3, 9, 20)  # a bright voxel in the air
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def affines():
    """(RAS voxels -> mm, tilted by 10 degrees; voxels of the file -> mm: z, flipped x, y)."""
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    ras = np.eye(4)
    ras[:3, :3], ras[:3, 3] = turn * (4.0, 4.0, 5.0), (-80.0, -90.0, -70.0)
    to_file = np.array([[0, 0, 1, 0], [-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    return ras, ras @ np.linalg.inv(to_file)


def to_file(array):
    return array.transpose(2, 0, 1)[:, ::-1]


def make_views():
    """PET with negative voxels and a hot one, CT, CT SD, MR: of a box and noise, all different."""
    rng = np.random.default_rng(0)
    head = np.zeros(SHAPE, np.float32)
    head[6:-6, 6:-6, 4:-4] = 1
    pet = (8 * head + rng.normal(0, 0.5, SHAPE)).astype(np.float32)
    pet[HOT] = 5000.0
    ct = np.rint(-1000 + 1040 * head + rng.normal(0, 20, SHAPE)).astype(np.float32)
    sd = (40 * head * rng.uniform(0.5, 1, SHAPE)).astype(np.float32)
    mr = (600 * head * rng.uniform(0.9, 1.1, SHAPE)).astype(np.float32)
    synthetic = {"ct": {"image": ct, "sd": sd}, "mr": {"image": mr, "sd": None}}
    return volume_page.make_views(pet, synthetic, "SUVbw")


def write_page(path, views):
    checks, facts = [Check("header", "complete", "")], {"Mode": "mirror"}
    volume_page.write(
        path, "sub-1 <b>", views, affines(), CENTRE, checks, facts, simulated=False, calibrated=0
    )


def unpack(text: str, layer: dict) -> np.ndarray:
    """[x, y, z] in units: the decoder of viewer.js, in numpy."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text), 31), np.uint8).reshape(2, -1)
    code = raw[0].astype(np.int32) | raw[1].astype(np.int32) << 8
    steps = ((code >> 1) ^ -(code & 1)).astype(np.int16).reshape(layer["shape"][::-1])
    for axis in (0, 1, 2):
        steps = np.cumsum(steps, axis=axis, dtype=np.int16)
    return steps.transpose(2, 1, 0) * layer["quantum"]


def look_up(meta: dict, data: list, number: int, at) -> float:
    layer = meta["layers"][number]
    index = [
        min(n - 1, int(i / s + 0.5))
        for i, s, n in zip(at, layer["step"], layer["shape"], strict=True)
    ]
    return unpack(data[number], layer)[tuple(index)]


def file_voxel(meta: dict, at) -> tuple:
    return tuple((np.array(meta["file"]) @ [*at, 1])[:3])


def pack(views, max_bytes):
    box = (slice(3, 38), slice(2, 41), slice(1, 30))
    packed = viewer.pack(views, box, CENTRE, *affines(), max_bytes)
    return packed["meta"], packed["data"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, make_views())
    return path


@pytest.fixture(scope="module")
def page(path):
    return path.read_text()


class TestPage:
    def test_values_are_those_of_the_file_at_its_voxels(self, page):
        """Quantised: half a step off at most. The page cuts: 35 mm around the PET's box is all here."""
        meta = json.loads(re.search(r"data-meta>(.*?)</script>", page)[1])
        data = re.findall(r"data-volume=\"\d\">(.*?)</script>", page)
        assert len(data) == 4 and meta["step"] == [1, 1, 1] and meta["shape"] == list(SHAPE)
        files = [to_file(v.array) for v in make_views()]
        for at in ((0, 0, 0), HOT, (39, 3, 17), tuple(meta["centre"])):
            voxel = file_voxel(meta, at)
            mm = (np.array(meta["affine"]) @ [*at, 1])[:3]
            np.testing.assert_allclose(mm, (affines()[1] @ [*voxel, 1])[:3], atol=1e-9)
            for number, file in enumerate(files):
                half = 0.51 * meta["layers"][number]["quantum"]
                assert abs(look_up(meta, data, number, at) - file[voxel]) <= half
        beside = file_voxel(meta, (HOT[0] + 1, *HOT[1:]))
        assert abs(look_up(meta, data, 0, HOT) - files[0][beside]) > 100
        assert meta["centre"] == list(CENTRE) and round(meta["oblique"]) == 10

    def test_titles_units_windows_and_steps(self, page):
        layers = json.loads(re.search(r"data-meta>(.*?)</script>", page)[1])["layers"]
        told = [(x["title"], x["units"]) for x in layers]
        assert told == [
            ("PET", "SUVbw"),
            ("synthetic CT", "HU"),
            ("synthetic CT SD", "HU"),
            ("synthetic MR", "a.u."),
        ]
        windows = {w["name"]: (w["low"], w["high"]) for w in layers[1]["windows"]}
        assert windows == {"head": (-200, 1300), "brain": (0, 80), "bone": (-800, 2000)}
        assert [x["quantum"] for x in layers[1:]] == [1.0, 0.2, 1.0]
        assert layers[0]["quantum"] == 0.2  # 0.02 would not hold the hot voxel in 16 bits

    def test_it_is_one_file_without_addresses(self, page):
        assert len(page) < 10e6 and "<b>" not in page.split("<title>")[1].split("</title>")[0]
        assert not re.search(r"https?:|//[a-z]+\.|@import|\bfetch\(|XMLHttp", page)
        assert all(u.startswith("data:") for u in re.findall(r"(?:src|href)=\"(.*?)\"", page))
        assert 'alt="Axial, coronal and sagittal views' in page  # the static figure stays


def test_a_tumour_that_outshines_the_brain_does_not_hide_it():
    """Amino acids, somatostatin: what glows most is 44 mm wide; the page shows the brain."""
    at = (np.indices((50, 56, 46)) - np.reshape((24.5, 27.5, 22.5), (3, 1, 1, 1))) * 4.0
    brain = (at**2 / np.reshape((66.0, 82.0, 62.0), (3, 1, 1, 1)) ** 2).sum(0) < 1
    tumour = ((at - np.reshape((30.0, 20.0, 10.0), (3, 1, 1, 1))) ** 2).sum(0) < 22**2
    for uptake in (1.0, 4.0, 9.0):
        pet = np.where(tumour, uptake, brain * 1.0)
        (view,) = volume_page.make_views(pet, {})
        box = volume_page._box(view, np.full(3, 4.0))
        assert brain[box].sum() == brain.sum(), uptake


class TestRoom:
    def test_less_room_gives_fewer_voxels_as_they_are(self):
        """First of the SDs, then through plane, then everywhere; the values stay those of the file."""
        views, taken = make_views(), []
        room = 1e9
        for _ in range(4):
            meta, data = pack(views, room)
            assert sum(map(len, data)) <= room
            room = 0.98 * sum(map(len, data))
            sd = np.array(meta["step"]) * meta["layers"][2]["step"]
            taken.append((tuple(meta["step"]), tuple(sd.astype(int).tolist())))
            at = tuple(n // 4 * 2 for n in meta["shape"])  # even: a voxel of the SD too
            voxel = file_voxel(meta, at)
            for number, view in enumerate(views):
                error = look_up(meta, data, number, at) - to_file(view.array)[voxel]
                assert abs(error) <= 0.51 * meta["layers"][number]["quantum"]
        one, two, through = (1, 1, 1), (2, 2, 2), (1, 1, 2)
        assert taken == [(one, one), (one, two), (through, two), (two, two)]

    def test_no_room_is_an_error(self):
        with pytest.raises(ValueError, match="do not fit into 100 bytes"):
            pack(make_views(), 100)

    def test_thick_slices_are_kept(self):
        """Every second voxel of 1 mm, every slice of 4 mm."""
        steps = list(viewer._steps(np.array([1.0, 1.0, 4.0])))
        assert steps[1] == ((1, 1, 1), (2, 2, 1)) and steps[3] == ((2, 2, 1), (2, 2, 1))


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH")
    with api.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.slow
class TestBrowser:
    def open(self, browser, path, *, before="", **options):
        """A page whose `troubles` are its script errors and what it asked the network for."""
        page = browser.new_page(**options)
        page.troubles = []
        page.on("pageerror", lambda e: page.troubles.append(str(e)))
        page.on("request", lambda r: r.url.startswith("http") and page.troubles.append(r.url))
        if before:
            page.add_init_script(before)
        page.goto(path.as_uri())
        return page

    def read(self, page, key) -> list[float]:
        self.settle(page)
        text = page.inner_text(f"[data-value='{key}']")
        return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", text)]

    def settle(self, page):
        page.evaluate(
            "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def pixels(self, page, plane="axial"):
        self.settle(page)
        return page.evaluate(f"document.querySelector('[data-plane={plane}] canvas').toDataURL()")

    def click(self, page, plane, across, down):
        canvas = page.locator(f"[data-plane={plane}] canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        spot = box["x"] + across * box["width"], box["y"] + down * box["height"]
        page.mouse.click(*spot)
        return spot

    def check_values(self, page):
        voxel = tuple(int(v) for v in self.read(page, "voxel"))
        for number, (view, step) in enumerate(zip(make_views(), (0.2, 1.0, 0.2, 1.0), strict=True)):
            wanted = to_file(view.array)[voxel]
            assert abs(self.read(page, number)[-1] - wanted) <= 0.51 * step, (number, voxel)
        return voxel

    @pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
    def test_a_click_a_wheel_a_slider_and_keys(self, browser, path, size):
        viewport = {"width": size[0], "height": size[1]}
        page = self.open(browser, path, viewport=viewport)
        page.wait_for_selector("#viewer[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        start = self.check_values(page)
        self.click(page, "axial", 0.26, 0.3)  # x = 10, y = 43 - 13 = 30, z as it was
        clicked = self.check_values(page)
        assert clicked == (CENTRE[2], SHAPE[0] - 1 - 10, 30) != start
        page.mouse.wheel(0, 100)
        assert self.check_values(page) == (CENTRE[2] - 1, *clicked[1:])
        page.keyboard.press("PageUp")
        page.keyboard.press("ArrowRight")
        assert self.check_values(page) == (CENTRE[2], clicked[1] - 1, 30)
        before = self.pixels(page)
        page.fill("[data-opacity]", "90")
        after = self.pixels(page)
        assert before != after
        page.keyboard.press("o")
        assert self.pixels(page) not in (before, after)
        page.keyboard.press("o")
        assert self.pixels(page) == after
        page.select_option("[data-window=over]", label="brain 0 to 80 HU")
        assert self.pixels(page) != after
        page.check("[data-radiological]")
        self.click(page, "axial", 0.26, 0.3)  # the patient's right is left now: x = 39 - 10
        assert self.check_values(page)[1] == 10
        assert page.troubles == []
        page.close()

    @pytest.mark.parametrize("radiological", [False, True])
    def test_what_is_painted_lies_where_it_is_clicked(self, browser, path, radiological):
        """A bright voxel in the air is bright at its place in all planes, and dark at no mirrored one."""
        page = self.open(browser, path, viewport={"width": 1440, "height": 900})
        page.wait_for_selector("#viewer[data-ready]")
        page.set_checked("[data-radiological]", radiological)
        page.uncheck("[data-lines]")
        page.select_option("[data-layer=over]", label="none")
        x, y, z = ((i + 0.5) / n for i, n in zip(HOT, SHAPE, strict=True))
        across = 1 - x if radiological else x
        page.fill("[data-plane=axial] input", str(HOT[2]))
        self.click(page, "axial", across, 1 - y)
        assert self.check_values(page) == (HOT[2], SHAPE[0] - 1 - HOT[0], HOT[1])
        places = {"axial": (across, 1 - y), "coronal": (across, 1 - z), "sagittal": (1 - y, 1 - z)}
        for plane, (right, down) in places.items():
            assert self.brightness(page, plane, right, down) > 400, plane
            for spot in ((1 - right, down), (right, 1 - down)):
                assert self.brightness(page, plane, *spot) < 200, (plane, spot)
        page.close()

    def brightness(self, page, plane, across, down) -> int:
        """R + G + B of a canvas pixel."""
        return page.evaluate(
            """([plane, across, down]) => {
              const canvas = document.querySelector(`[data-plane=${plane}] canvas`);
              const at = [across * canvas.width, down * canvas.height].map(Math.floor);
              const [r, g, b] = canvas.getContext("2d").getImageData(...at, 1, 1).data;
              return r + g + b;
            }""",
            [plane, across, down],
        )

    def test_a_finger_sets_the_cross_hair(self, browser, path):
        viewport = {"width": 390, "height": 844}
        page = self.open(browser, path, viewport=viewport, has_touch=True, is_mobile=True)
        page.wait_for_selector("#viewer[data-ready]")
        canvas = page.locator("[data-plane=axial] canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.touchscreen.tap(box["x"] + 0.26 * box["width"], box["y"] + 0.3 * box["height"])
        assert self.check_values(page) == (CENTRE[2], SHAPE[0] - 1 - 10, 30)
        page.locator("[data-plane=sagittal] button").tap()
        self.settle(page)
        large, small = (
            page.locator(f"[data-plane={p}] canvas").bounding_box()["width"]
            for p in ("sagittal", "axial")
        )
        assert large > 1.5 * small and page.troubles == []
        page.close()

    def test_without_the_feature_the_figures_stay(self, browser, path):
        page = self.open(browser, path, before="delete window.DecompressionStream")
        page.wait_for_function(
            "document.querySelector('[data-note]').textContent.includes('not run')"
        )
        assert page.locator("#viewer .planes").is_hidden()
        assert page.locator("img[alt^='Axial']").is_visible() and page.troubles == []
        page.close()
