"""Parts that the drawing of a thing or a background always has, so that no wish can leave them out."""

from __future__ import annotations

from typing import Final

from gems.models.open.things import INDEX, THINGS

__all__ = ["has_part", "has_scenery"]

_HAT: Final = ("sun hat",)  # what "hat" is read as
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("snowman", "plain snowman"), (*_HAT, "top hat", "scarf")),
    **dict.fromkeys(("farmer", "chef", "detective", "cowboy", "Santa Claus", "wizard", "artist", "guard"), _HAT),
    **dict.fromkeys(("mechanic", "pilot", "police officer"), (*_HAT, "cap")),
    **dict.fromkeys(("construction worker", "firefighter"), (*_HAT, "hard hat", "military helmet")),
    **dict.fromkeys(("king", "prince", "princess"), ("crown",)),
    **dict.fromkeys(("skier", "snowboarder"), ("scarf", "goggles")),
    "student": (*_HAT, "graduation cap"),
    "ninja": ("sword",),
    "scientist": ("goggles", "pair of glasses"),
    "cool smiley": ("pair of sunglasses", "pair of glasses"),
    "programmer": ("laptop",),
    "singer": ("microphone",),
    "doctor": ("stethoscope",),
    "cyclist": ("bicycle",),
    "jockey": ("horse",),
    "birthday cake": ("candle",),
    "beach with umbrella": ("umbrella", "beach umbrella"),
    "nest with eggs": ("egg",),
}
"""By a thing's name, the names of things that its drawing shows too."""

_OF_FACES: Final = ("eye", "nose", "mouth")
_WITH_FACES: Final = (
    *(
        "baby",
        "child",
        "boy",
        "girl",
        "person",
        "man",
        "woman",
        "bearded man",
        "elderly person",
        "old man",
        "old woman",
    ),
    *("doctor", "student", "teacher", "judge", "farmer", "chef", "mechanic", "office worker", "scientist", "singer"),
    *("artist", "pilot", "astronaut", "firefighter", "police officer", "construction worker", "king", "prince"),
    *("princess", "groom", "bride", "angel", "Santa Claus", "clown", "cowboy", "snowman", "plain snowman"),
)
_HEADS: Final = (
    *(
        "hamster",
        "kitten",
        "puppy",
        "fox",
        "raccoon",
        "bunny face",
        "monkey face",
        "koala",
        "piglet",
        "wolf",
        "gorilla",
    ),
    *("tiger cub", "lion head", "boar", "deer", "panda", "bear head", "polar bear", "calf", "moose"),
)
_WALKING: Final = (
    *("chipmunk", "lizard", "ant", "beetle", "ladybug", "cricket", "cockroach", "spider", "scorpion", "chick", "cat"),
    *("dog", "poodle", "rabbit", "turkey", "goose", "penguin", "dodo", "turtle", "crocodile", "orangutan", "tiger"),
    *("leopard", "goat", "ram", "sheep", "pig", "donkey", "llama", "kangaroo", "flamingo", "horse", "bison", "ox"),
    *("water buffalo", "cow", "camel", "bactrian camel", "giraffe", "elephant", "mammoth", "hippopotamus"),
    *("sauropod", "T-Rex", "bird", "mosquito", "fly", "ostrich", "stork", "crab", "table", "chair"),
)
_SEEING: Final = (
    *(
        "mouse",
        "frog",
        "cat",
        "dog",
        "rabbit",
        "duck",
        "goose",
        "chicken",
        "rooster",
        "penguin",
        "owl",
        "parrot",
        "eagle",
    ),
    *("bird", "horse", "unicorn", "zebra", "pig", "elephant", "giraffe", "whale", "spouting whale", "dolphin", "fish"),
    *("tropical fish", "shark", "octopus", "squid", "seal", "turtle", "crocodile", "smiley", "robot", "ghost", "alien"),
)
_EARED: Final = (
    "mouse",
    "rat",
    "cat",
    "dog",
    "rabbit",
    "elephant",
    "giraffe",
    "horse",
    "pig",
    "cow",
    "zebra",
    "donkey",
)
_WITH_WINDOWS: Final = (
    *("house", "house with garden", "housing estate", "office building", "post office", "hospital", "hotel", "school"),
    *("convenience store", "department store", "factory", "castle", "chapel", "church", "synagogue", "tower", "barn"),
    *("railway car", "locomotive", "bus", "double decker", "minibus", "ambulance", "fire engine", "police car"),
    *("taxi", "car", "suv", "pickup truck", "truck", "semi truck", "tractor", "racing car", "helicopter", "train"),
    *("tram", "metro", "monorail", "aerial tramway", "passenger ship", "ferry", "excavator"),
)
_WITH_DOORS: Final = (
    *("house", "house with garden", "housing estate", "derelict house", "hut", "hospital", "school", "bank"),
    *("church", "chapel", "mosque", "castle", "windmill", "tower", "lighthouse", "barn", "post office"),
)
_WITH_WHEELS: Final = (
    *("locomotive", "railway car", "bus", "double decker", "minibus", "ambulance", "fire engine", "police car", "taxi"),
    *("car", "suv", "pickup truck", "truck", "semi truck", "tractor", "racing car", "motorcycle", "motor scooter"),
    *("wheelchair", "motorized wheelchair", "auto rickshaw", "bicycle", "shopping cart", "wheelbarrow"),
    *("skateboard", "kick scooter", "roller skate"),
)
_LEAFY: Final = ("pine tree", "tree", "palm tree", "bush", "potted plant", "seedling", "tulip", "rose", "bouquet")
_BY_PART: Final[dict[str, tuple[str, ...]]] = {
    "eye": (*_WITH_FACES, *_HEADS, *_SEEING),
    "nose": (*_WITH_FACES, *_HEADS),
    "mouth": _WITH_FACES,
    "carrot": ("snowman", "plain snowman"),
    "ear": (*_HEADS, *_EARED),
    **dict.fromkeys(("leg", "foot"), _WALKING),
    "window": _WITH_WINDOWS,
    "door": _WITH_DOORS,
    "wheel": _WITH_WHEELS,
    **dict.fromkeys(("autumn leaf", "green leaf"), _LEAFY),
    "flag": ("stadium", "hindu temple", "circus tent", "tower"),
    "tree": ("house with garden", "campsite"),
    "palm tree": ("desert island",),
    "sun": ("desert island", "sun behind cloud"),
    "star": ("bridge",),
    "heart": ("chapel",),
    "brick": ("wall",),
}
"""By a part, the things whose drawings always show it."""


def has_part(name: str, part: int) -> bool:
    """Whether the drawing of a thing always shows another."""
    return name in _BY_PART.get(THINGS[part].name, ()) or any(INDEX[own] == part for own in _PARTS.get(name, ()))


_IN_SCENERY: Final[dict[str, tuple[str, ...]]] = {
    "meadow": ("cloud", "sun", "tree", "mountain"),
    "sea": ("cloud", "sun", "mountain"),
    "forest": ("tree", "pine tree", "sun"),
    "desert": ("sun", "mountain"),
    "snow": ("tree", "pine tree", "snowflake", "mountain"),
    "city": ("cloud", "office building"),
    "space": ("star",),
    "night": ("star", "full moon", "tree", "pine tree"),
    "sunset": ("cloud", "sun", "mountain"),
    "room": ("window", "cloud", "rug"),
    "sky": ("cloud", "sun"),
}
"""By a background, what is painted in it."""


def has_scenery(background: str, thing: int) -> bool:
    """Whether a background always shows a thing, or what looks like one."""
    return THINGS[thing].name in _IN_SCENERY.get(background, ())
