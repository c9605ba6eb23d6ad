from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from contact_sheet import scene_sheet
from PIL import Image

from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Item, layout, sample_spec
from gems.models.pocket.sprites import silhouette, sprite
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS

CAR, ELEPHANT, BEAR = (next(i for i, w in enumerate(OBJECTS) if w.singular == s) for s in ("car", "elephant", "bear"))


def scene(seed=0):
    rng = np.random.default_rng(seed)
    return layout(sample_spec(rng), rng).items


def array(image):
    return np.asarray(image, dtype=np.int32)


def inside(obj, image, x, y, size):
    """The pixels of ``image`` well inside the shape of the thing, as an array (n, 3)."""
    side = round(size * image.width)
    left, top = round(x * image.width - side / 2), round(y * image.height - side / 2)
    mask = np.asarray(silhouette(OBJECTS[obj].twemoji, side)) > 250
    return array(image.crop((left, top, left + side, top + side)))[mask]


def test_same_arguments_give_the_same_bytes_from_any_thread():
    items = scene()
    with ThreadPoolExecutor(4) as pool:
        drawings = list(pool.map(lambda _: draw_scene(items, style=11).tobytes(), range(8)))
    assert len(set(drawings)) == 1


def test_order_of_the_items_does_not_matter_where_depths_differ():
    items = [Item(CAR, 3, 0.4, 0.5, 0.3, 0.2), Item(BEAR, 5, 0.5, 0.5, 0.3, 0.8)]
    assert draw_scene(items).tobytes() == draw_scene(items[::-1]).tobytes()


@pytest.mark.parametrize("size", [64, 256, 512])
def test_image_has_the_requested_size(size):
    image = draw_scene(scene(), size=size)
    assert (image.size, image.mode) == ((size, size), "RGB")


def test_a_small_drawing_looks_like_a_shrunk_large_one():
    items = scene(3)
    small = array(draw_scene(items, style=2, size=256))
    reduced = array(draw_scene(items, style=2, size=512).resize((256, 256), Image.Resampling.BILINEAR))
    assert np.abs(small - reduced).mean() < 4


def test_styles_have_backdrops_of_their_own():
    assert len({draw_scene([], style=style, size=64).tobytes() for style in range(24)}) == 24


def test_things_beyond_the_edge_are_cut_off():
    image = draw_scene([Item(CAR, 0, x, y, 0.4, 1.0) for x in (0.0, 1.0) for y in (0.0, 1.0)], size=128)
    assert np.any(array(image)[0, 0] != array(draw_scene([], size=128))[0, 0])


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.8), (0.8, 0.2)])
def test_nearer_thing_covers_the_farther_one(first, second):
    red, blue = ATTRIBUTES.index("red"), ATTRIBUTES.index("blue")
    items = [Item(ELEPHANT, red, 0.5, 0.5, 0.4, first), Item(ELEPHANT, blue, 0.5, 0.5, 0.4, second)]
    r, _, b = inside(ELEPHANT, draw_scene(items), 0.5, 0.5, 0.4).mean(axis=0)
    assert (r > b) == (first > second)


def test_distance_veils_and_nearness_casts_a_larger_shadow():
    def darkened(depth):
        empty = array(draw_scene([]))
        return int(((empty - array(draw_scene([Item(CAR, 1, 0.5, 0.5, 0.3, depth)]))).min(axis=2) > 20).sum())

    black = ATTRIBUTES.index("black")
    levels = [
        inside(CAR, draw_scene([Item(CAR, black, 0.5, 0.5, 0.3, depth)]), 0.5, 0.5, 0.3).mean()
        for depth in (0.0, 0.5, 1.0)
    ]
    assert levels[0] > levels[1] > levels[2]
    assert darkened(1.0) > darkened(0.0)


def test_colors_are_the_colors_they_are_named_after():
    mean = {
        name: inside(BEAR, draw_scene([Item(BEAR, i, 0.5, 0.5, 0.5, 1.0)]), 0.5, 0.5, 0.5).mean(axis=0)
        for i, name in enumerate(ATTRIBUTES)
    }
    assert mean["white"].min() > 200
    assert mean["black"].max() < 80
    assert [int(mean[name].argmax()) for name in ("red", "green", "blue")] == [0, 1, 2]
    assert mean["yellow"][:2].min() > mean["yellow"][2] + 80
    assert mean["pink"].min() > mean["red"].min() + 60
    assert np.ptp(mean["metal"]) < 40


@pytest.mark.parametrize("obj", [CAR, ELEPHANT, BEAR])
def test_attributes_differ_from_one_another_and_from_the_natural_look(obj):
    looks = [
        array(sprite(OBJECTS[obj].twemoji, ATTRIBUTES[attribute]))[..., :3] for attribute in range(len(ATTRIBUTES))
    ]
    body = array(sprite(OBJECTS[obj].twemoji, ""))[..., 3] > 250
    for a in range(len(looks)):
        for b in range(a):
            assert np.abs(looks[a] - looks[b])[body].mean() > 8, (ATTRIBUTES[a], ATTRIBUTES[b])


def test_every_object_has_a_drawing_of_its_own():
    assert len({sprite(OBJECTS[obj].twemoji, "").tobytes() for obj in range(len(OBJECTS))}) == len(OBJECTS)


def test_glass_lets_the_backdrop_through():
    glass, middle = sprite(OBJECTS[ELEPHANT].twemoji, "glass"), 224 // 2
    alpha = array(glass.getchannel("A"))
    assert np.median(alpha[middle - 20 : middle + 20, middle - 20 : middle + 20]) < 200


def test_a_contact_sheet_shows_every_scene():
    assert scene_sheet(3, size=96, columns=2).size == (192, 2 * 116)
