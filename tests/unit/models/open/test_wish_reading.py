"""Prompts as people write them, read into wishes."""

from __future__ import annotations

import pytest

from gems.errors import InputError
from gems.models.open.chat import OpenChatModel
from gems.models.open.draft_wording import terse
from gems.models.open.foreign_wording import foreign
from gems.models.open.phrasebook import TONGUES, phrasebook
from gems.models.open.questions import parse_question
from gems.models.open.things import BACKGROUNDS, INDEX, LOOK_NAMES, PLACES, RELATIONS, SIZES, THINGS
from gems.models.open.wish import Group, Wish
from gems.models.open.wish_reading import read

_THREE_IN_A_BASKET = "a pear, a lemon, an egg in a basket, the pear in the basket, the lemon in the basket"

WORN = "left out: wearing (drawn as holding)"
"""What is told of all clothes that somebody has, whatever the word for it."""


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("please draw me a picture of three black cats next to two dogs", "three black cats next to two dogs"),
        ("A dozen eggs and a pair of glasses", "twelve eggs, a pair of glasses"),
        ("a car that is red", "a red car"),
        ("an orange orange", "an orange orange"),
        ("a glass bottle under a tree at night", "a glass champagne bottle under a tree, at night"),
        ("a huge dragon flying over a castle", "a huge dragon flying over a castle"),
        ("a dog between two cats and a horse", "a dog between two cats and a horse"),
        ("a man with a hat", "a man holding a sun hat"),
        ("a big bear", "a big bear"),
        ("seven tulips in a vase", "seven tulips in a vase"),
        ("a pear in a plate", "a pear on a plate"),
        (
            "a man with a black hat holding a guitar",
            "a man holding a black sun hat, a guitar, the man holding the guitar",
        ),
        ("a dog under a bed holding a bone", "a dog under a bed, a bone, the dog holding the bone"),
        ("a pear, a lemon and an egg in a basket", _THREE_IN_A_BASKET),
        ("a dog in a forest and a cat on a couch", "a dog, a cat on a couch, in a forest"),
        ("three desks", "three desks"),
        ("a cat without a table", "a cat, without tables"),
        ("seven strawberries in a bowl", "seven strawberries in a bowl"),
        ("a man with a red coat", "a man holding a red coat"),
        ("a woman in the rain", "a woman, a rain cloud"),
        ("a dog under a storm cloud", "a dog under a storm cloud"),
        ("a house with a tree next to it", "a house, a tree, the tree next to the house"),
        ("a bird flying over the sea", "a bird at the top, on the sea"),
        ("two red flowers and three white flowers", "two red flowers, three white flowers"),
        ("an ocean without people", "on the sea, without people"),
        ("some sheep and many birds in a field", "some sheep, many birds, in a meadow"),
        ("a mouse in the top left corner", "a mouse at the top left"),
        ("a cat sitting on a chair in the background", "a cat on a chair in the background"),
        ('a t-shirt that says "be kind"', 'a t-shirt that says "BE KIND"'),
        ('an owl and the words "Good night"', 'an owl, a sign that says "GOOD NIGHT"'),
        ("Zwei rote Katzen neben einem großen Hund", "two red cats next to a big dog"),
        ("Eine Eule ohne Hut bei Nacht", "an owl, at night, without sun hats"),
        ("trois chats noirs à gauche d'un éléphant rayé", "three black cats to the left of a striped elephant"),
        ("un petit chien blanc sous un grand arbre dans la neige", "a small white dog under a big tree, in the snow"),
        ("cinco manzanas rojas y dos plátanos amarillos", "five red apples, two yellow bananas"),
        ("due elefanti davanti a una casa, di notte", "two elephants in front of a house, at night"),
        ("um cachorro preto atrás de uma árvore", "a black dog behind a tree"),
        ("een kat op een stoel zonder hond", "a cat on a chair, without dogs"),
        ("dwa czarne koty obok psa", "two black cats next to a dog"),
        ("большая собака под деревом ночью", "a big dog under a tree, at night"),
        ("üç elma ve bir muz", "three apples, a banana"),
        ("两只红色的猫在一辆蓝色汽车的左边", "two red cats to the left of a blue car"),
        ("猫追老鼠", "a cat chasing a mouse"),
        ("森の中の白い馬", "a white horse, in a forest"),
        ("빨간 자동차 옆에 고양이 두 마리", "a red car, two cats, the cats next to the car"),
    ],
)
def test_what_people_write(prompt: str, meaning: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), [note for note in reading.notes if note != WORN]) == (meaning, [])


def test_what_is_drawn_as_something_else_or_not_at_all_is_told() -> None:
    corgi = read("an ornate corgi near a waterfall")
    assert terse(corgi.wish) == "a dog"
    assert corgi.stand_ins == (("corgi", "dog"),)
    assert corgi.notes == ("'corgi' is drawn as a dog", "not drawn: waterfall", "left out: ornate")


@pytest.mark.parametrize(
    ("prompt", "meaning", "note"),
    [
        ("a pear on an old green table", "a pear on a green table", "left out: old"),
        ("a pear on a green roof at sunset", "a pear, at sunset", "not drawn: roof"),
        ("a cat without a sidewalk", "a cat", "left out: without sidewalk"),
        ("un chien blanc sous un comptoir rouge", "a white dog under a red table", "'comptoir' is drawn as a table"),
        ("un lapin dans une forêt verte", "a rabbit, in a forest", "left out: verte"),
        (
            "un mostrador de madera con un gato",
            "a wooden table, a cat, the cat on the table",
            "'mostrador' is drawn as a table",
        ),
        ("ein Hund neben einer Werkbank", "a dog next to a desk", "'Werkbank' is drawn as a desk"),
        ("een rode vriezer", "a red refrigerator", "'vriezer' is drawn as a refrigerator"),
        ("la cómoda azul", "a blue wardrobe", "'cómoda' is drawn as a wardrobe"),
        ("ein Ritter", "a guard", "'Ritter' is drawn as a guard"),
        ("una zuppa e un cavaliere", "a bowl of soup, a guard", "'cavaliere' is drawn as a guard"),
        ("два бульдозера", "two excavators", "'бульдозера' is drawn as an excavator"),
        ("黒い椅子とホワイトボード", "a black chair, a blackboard", "'ホワイトボード' is drawn as a blackboard"),
        ("a pear in a cup", "a pear in a cup of coffee", "'cup' is drawn as a cup of coffee"),
        ("ein Haus mit einem Dach", "a house", "not drawn: Dach"),
        ("tres gatos sobre un tejado de noche", "three cats, at night", "not drawn: tejado"),
        ("un barco con velas", "a ship", "not drawn: velas"),
        ("una macchina parcheggiata", "a car", "left out: parcheggiata"),
    ],
)
def test_what_has_no_drawing_is_told_and_takes_its_looks_and_relations_along(
    prompt: str, meaning: str, note: str
) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == (meaning, (note,))


@pytest.mark.parametrize(
    ("prompt", "meaning", "note"),
    [
        ("a duck on a pond", "a duck, on the sea", "'pond' is drawn as the sea"),
        ("a bird over a lake", "a bird at the top, on the sea", "'lake' is drawn as the sea"),
        ("two cats in a kitchen", "two cats, in a room", "'kitchen' is drawn as a room"),
        ("a robot on the moon", "a robot, in outer space", "'on the moon' is drawn as outer space"),
        ("a rooster at sunrise", "a rooster, at sunset", "'at sunrise' is drawn as a sunset"),
        (
            "a pear on a black background",
            "a pear, on a plain background",
            "'black background' is drawn as a plain backgr",
        ),
        ("ein Hund am Strand", "a dog, on the sea", "'am Strand' is drawn as the sea"),
        ("deux chats dans la cuisine", "two cats, in a room", "'cuisine' is drawn as a room"),
        ("un gatto in giardino", "a cat, in a meadow", "'in giardino' is drawn as a meadow"),
        ("un perro en la playa", "a dog, on the sea", "'playa' is drawn as the sea"),
        ("um pato no lago", "a duck, on the sea", "'lago' is drawn as the sea"),
        ("een hond in de keuken", "a dog, in a room", "'keuken' is drawn as a room"),
        ("pies na plaży", "a dog, on the sea", "'na plaży' is drawn as the sea"),
        ("собака на кухне", "a dog, in a room", "'кухне' is drawn as a room"),
        ("mutfakta bir kedi", "a cat, in a room", "'mutfakta' is drawn as a room"),
        ("公园里有一只狗", "a dog, in a meadow", "'公园' is drawn as a meadow"),
        ("池のアヒル", "a duck, on the sea", "'池' is drawn as the sea"),
        ("부엌에 고양이", "a cat, in a room", "'부엌에' is drawn as a room"),
    ],
)
def test_a_place_that_is_drawn_as_another_is_told(prompt: str, meaning: str, note: str) -> None:
    reading = read(prompt)
    assert terse(reading.wish) == meaning
    assert len(reading.notes) == 1
    assert reading.notes[0].startswith(note)


@pytest.mark.parametrize(
    "prompt", ["a duck on the ocean", "a fox in the woods", "a dog on the lawn", "ein Hund im Gras"]
)
def test_another_name_of_a_background_is_that_background(prompt: str) -> None:
    assert read(prompt).notes == ()


def test_a_question_about_a_place_that_is_drawn_as_another_is_none_that_the_open_models_can_answer() -> None:
    assert parse_question("Is the scene set in a room?") is not None
    assert parse_question("Is the scene set in a kitchen?") is None
    assert parse_question("Is the background a lake?") is None


@pytest.mark.parametrize(
    ("prompt", "meaning", "left_out"),
    [
        ("a robot waving", "a robot", "waving"),
        ("a chef cooking soup", "a chef holding a bowl of soup", "cooking (drawn as holding)"),
        ("a man wearing a cap", "a man holding a cap", "wearing (drawn as holding)"),
        ("a man in a blue coat", "a man holding a blue coat", "wearing (drawn as holding)"),
        ("a man with a hat", "a man holding a sun hat", "wearing (drawn as holding)"),
        ("ein Mann mit grünem Hut", "a man holding a green sun hat", "wearing (drawn as holding)"),
        ("una donna con un cappello", "a woman holding a sun hat", "wearing (drawn as holding)"),
        ("şapkalı bir adam", "a sun hat, a man, the man holding the sun hat", "wearing (drawn as holding)"),
        ("um velho de chapéu marrom", "an old man holding a brown sun hat", "wearing (drawn as holding)"),
        ("five birds on a fence", "five birds above a fence", "on (drawn as above)"),
        ("twelve colourful balloons", "twelve balloons", "colourful"),
        ("ein Mädchen in einem roten Kleid", "a girl holding a red dress", "wearing (drawn as holding)"),
        ("a dog chasing", "a dog", "chasing"),
        ("a cat sleeping on a couch", "a cat on a couch", "sleeping on (drawn as on)"),
        ("an owl looking at a cat", "an owl next to a cat", "looking at (drawn as next to)"),
        ("a bright lantern", "a lantern", "bright"),
        ("ein Mann trinkt Kaffee", "a man holding a cup of coffee", "trinkt (drawn as holding)"),
        ("eine süße Katze", "a cat", "süße"),
        ("un chat mange une pomme", "a cat holding an apple", "mange (drawn as holding)"),
        ("un hombre leyendo un libro", "a man holding a book", "leyendo (drawn as holding)"),
        ("一只可爱的猫", "a cat", "可爱的"),
        ("猫が魚を食べている", "a cat holding a fish", "を食べている (drawn as holding)"),
        ("кот читает книгу", "a cat holding a book", "читает (drawn as holding)"),
        ("elma yiyen bir at", "an apple, a horse, the horse holding the apple", "yiyen (drawn as holding)"),
    ],
)
def test_verbs_and_adjectives_that_are_not_drawn_are_told(prompt: str, meaning: str, left_out: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == (meaning, (f"left out: {left_out}",))


@pytest.mark.parametrize(
    ("prompt", "meaning", "left_out"),
    [
        ("four ducks standing behind", "four ducks", "behind"),
        ("on the roof of two ducks", "two ducks", "on the roof of"),
        ("an owl under and a dog", "an owl, a dog", "under"),
        ("Auf dem Dach ein Hahn", "a rooster", "Auf dem Dach"),
        ("На крыше два кота", "two cats", "На крыше"),
        ("na dachu kot", "a cat", "na dachu"),
        ("a pig between three cows", "a pig in front of three cows", "between (drawn as in front of)"),
        ("Ein Schwein zwischen Kühen", "a pig in front of some cows", "zwischen (drawn as in front of)"),
        ("un maiale tra due mucche", "a pig in front of two cows", "tra (drawn as in front of)"),
        ("kot między samochodami", "a cat in front of some cars", "między (drawn as in front of)"),
        ("собака между машинами", "a dog in front of some cars", "между (drawn as in front of)"),
        ("二匹の犬の間に猫", "two dogs, a cat, the cat in front of the dogs", "の間に (drawn as in front of)"),
        ("개 두 마리 사이에 고양이", "two dogs, a cat, the cat in front of the dogs", "사이에 (drawn as in front of)"),
        ("a train with an owl", "a train, an owl", "with"),
        ("a cat with a dog", "a cat, a dog", "with"),
        ("ein Haus mit einem Baum", "a house, a tree", "mit"),
        ("une maison avec un arbre", "a house, a tree", "avec"),
    ],
)
def test_a_relation_that_cannot_be_drawn_is_told(prompt: str, meaning: str, left_out: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.left_out) == (meaning, (left_out,))


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("a basket with three eggs", "a basket, three eggs, the eggs in the basket"),
        ("a plate with a lemon", "a plate, a lemon, the lemon on the plate"),
        ("a birthday cake with two candles", "a birthday cake, two candles, the candles on the birthday cake"),
        ("ein Eimer mit zwei Fischen", "a bucket, two fish, the fish in the bucket"),
        ("un panier avec des poires", "a basket, some pears, the pears in the basket"),
        ("корзина с грушами", "a basket, some pears, the pears in the basket"),
        ("a scarecrow with a black hat", "a scarecrow holding a black sun hat"),
        ("un pupazzo di neve con un cappello", "a snowman holding a sun hat"),
        ("犬と馬の間に猫がいる", "a dog, a horse, a cat, the cat between the dog and the horse"),
        ("ptak nad drzewami", "a bird above some trees"),
        ("кот возле домов", "a cat next to some houses"),
        ("кот возле книги", "a cat next to a book"),
        ("Dziewczynka trzyma balony", "a girl holding some balloons"),
        ("Eine Maus unter den Stühlen", "a mouse under some chairs"),
        ("arabaların önünde bir köpek", "some cars, a dog, the dog in front of the cars"),
        ("나무들 옆에 여우", "some trees, a fox, the fox next to the trees"),
    ],
)
def test_what_things_are_with_and_how_many_they_are_is_kept(prompt: str, meaning: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), [note for note in reading.notes if note != WORN]) == (meaning, [])


@pytest.mark.parametrize(
    ("prompt", "meaning", "left_out"),
    [
        ("three guitars in a row", "three guitars", "in a row"),
        ("four owls in a circle", "four owls", "in a circle"),
        ("six eggs in two rows", "six eggs", "in two rows"),
        ("two horses side by side", "two horses", "side by side"),
        ("zwei Pferde nebeneinander", "two horses", "nebeneinander"),
        ("三匹の猫が一列に並んでいる", "three cats", "一列に並んでいる"),
        ("deux chats en cercle", "two cats", "en cercle"),
        ("tres globos de colores", "three balloons", "de colores"),
        ("una casa de ladrillos", "a house", "ladrillos"),
        ("ein Haus aus Ziegelsteinen", "a house", "Ziegelsteinen"),
        ("a house made of bricks", "a house", "bricks"),
        ("une fille et un bouquet de tulipes", "a girl, a bouquet", "tulipes"),
        ("eski bir kamyon", "a truck", "eski"),
        ("una bicicletta vecchia", "a bicycle", "vecchia"),
        ("новый автобус", "a bus", "новый"),
        ("木の前に止まっているトラック", "a tree, a truck, the truck in front of the tree", "止まっている"),
        (
            "köprünün altından geçen tren",
            "a bridge, a train, the train under the bridge",
            "altından geçen (drawn as under)",
        ),
        ("一只跳舞的猫", "a cat", "跳舞"),
    ],
)
def test_words_that_mean_nothing_to_the_models_are_told_as_they_were_written(
    prompt: str, meaning: str, left_out: str
) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.left_out) == (meaning, (left_out,))


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("küçük kedi kırmızı bir top tutuyor", "a small cat holding a red soccer ball"),
        ("Obok domu stoi biały koń", "a house, a white horse, the horse next to the house"),
        ("yaşlı bir kadın", "an old woman"),
        ("un cestino", "a basket"),
        ("een konijntje", "a rabbit"),
        ("a bucket filled with two fish", "a bucket, two fish, the fish in the bucket"),
        ("梨の入ったかご", "a pear in a basket"),
        ("卵が三個皿にのっている", "three eggs on a plate"),
        ("玻璃瓶里有两条鱼", "a jar, two fish, the fish in the jar"),
        ("a basket of three lemons", "a basket, three lemons, the lemons in the basket"),
        (
            "a basket with an egg next to a cat",
            "a basket, an egg, a cat, the egg in the basket, the basket next to the cat",
        ),
        ("a man with a cane and a cap", "a man holding a cane, a cap, the man holding the cap"),
        ("a basket with an egg and a pear", "a basket, an egg, a pear, the egg in the basket, the pear in the basket"),
        ("a girl with a cap and a boy", "a girl holding a cap, a boy"),
        ("корзина грибов", "a basket, some mushrooms, the mushrooms in the basket"),
        ("kosz grzybów", "a basket, some mushrooms, the mushrooms in the basket"),
        ("um pato atrás das casas", "a duck behind some houses"),
        ("黒い帽子の雪だるま", "a black sun hat, a snowman, the snowman holding the sun hat"),
        ("青いコップ", "a blue cup of coffee"),
    ],
)
def test_words_are_about_the_noun_that_their_language_means(prompt: str, meaning: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), [note for note in reading.notes if note != WORN]) == (meaning, [])


def test_an_unknown_word_of_a_language_without_spaces_is_quoted_as_it_was_written() -> None:
    with pytest.raises(InputError, match=r"'ガジェット' \(did you mean ジェット機"):
        read("ガジェットの隣に猫")


@pytest.mark.parametrize("prompt", ["a dog chasing a cat", "a boy holding a cup of tea", "a girl riding a horse"])
def test_a_verb_that_is_drawn_is_no_news(prompt: str) -> None:
    assert read(prompt).notes == ()


def test_a_verb_that_is_drawn_as_another_is_no_question_that_the_open_models_can_answer() -> None:
    assert parse_question("Is the chef holding the pizza?") is not None
    assert parse_question("Is the chef eating the pizza?") is None


@pytest.mark.parametrize(
    ("prompt", "denied"),
    [
        ("a house with no animals", "with no animals"),
        ("a cat without a sidewalk", "without sidewalk"),
        ("ein Haus ohne Gardinen", "ohne Gardinen"),
        ("a curtainless window", "curtainless"),
        ("a snowman without a hat", "sun hats stay: every drawing of a snowman has such a part"),
        ("a meadow without trees", "trees stay: they are painted in a meadow"),
        ("una noche sin estrellas, con un perro", "stars stay: they are painted in night"),
    ],
)
def test_what_cannot_be_denied_is_told_and_asked_for(prompt: str, denied: str) -> None:
    assert denied in read(prompt).denials
    assert any(denied in note for note in read(prompt).notes)
    asked = OpenChatModel()._decompose(prompt)["requirements"]
    assert [parse_question(item["question"]) for item in asked if item.get("words") == prompt] == [None]


def test_an_unknown_noun_is_drawn_as_its_nearest_neighbour() -> None:
    reading = read("two blue tubas", {"tubas": "trombone"}.get)
    assert terse(reading.wish) == "two blue trombones"
    assert reading.stand_ins == (("tubas", "trombone"),)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("a capybara", "unknown thing 'capybara'"),
        ("13 cats", "count to twelve"),
        ("freedom", "unknown thing 'freedom'"),
        ("twelve cats and twelve dogs and twelve cows", "36 things"),
        ("a cat, a dog, a cow, a pig, a horse and a goat", "6 groups"),
        ("a cat and two cats", "two groups of cats"),
        ("a dog without dogs", "asked not to be there"),
        ('a sign that says "a text that is far too long to be written"', "up to 16 letters"),
        ('a sign that says "один"', "Latin letters"),
        ("", "names no thing"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(prompt: str, error: str) -> None:
    with pytest.raises(InputError) as caught:
        read(prompt)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("language", TONGUES)
def test_every_table_has_words_for_everything(language: str) -> None:
    book = phrasebook(language)
    for kind, values in {
        "thing": INDEX,
        "look": LOOK_NAMES[1:],
        "size": SIZES,
        "relation": RELATIONS,
        "place": PLACES,
        "background": BACKGROUNDS,
        "number": [str(n) for n in range(1, 13)],
    }.items():
        assert not [value for value in values if not book.first_words(kind, value).strip()]


@pytest.mark.parametrize("language", TONGUES[1:])
def test_every_noun_of_a_language_is_read_as_itself(language: str) -> None:
    wrong = []
    for index, thing in enumerate(THINGS):
        wish = Wish((Group(index, 2, look=LOOK_NAMES.index("blue")),))
        try:
            wrong += [thing.name] if read(foreign(wish, language)).wish != wish else []
        except InputError:
            wrong.append(thing.name)
    assert len(wrong) <= 0.02 * len(THINGS), wrong


def test_every_english_noun_is_read_as_itself() -> None:
    for index in range(len(THINGS)):
        for wish in (Wish((Group(index),)), Wish((Group(index, 3, look=5),))):
            assert read(terse(wish)).wish == wish


def test_a_prompt_is_read_once() -> None:
    prompt = "vier rote Hunde und eine Katze"
    assert read(prompt) is read(prompt)


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("a guitar under a chair, a drum to the left of the chair", "a guitar under a chair, a drum"),
        ("please draw a picture of my three happy dogs", "three dogs"),
        ("meine drei Hunde", "three dogs"),
        ("mes deux chats noirs", "two black cats"),
        ("我的两只狗", "two dogs"),
    ],
)
def test_a_thing_is_one_however_it_is_mentioned(prompt: str, meaning: str) -> None:
    assert terse(read(prompt).wish).startswith(meaning)


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("an owl sitting on top of a car at night", "an owl on a car, at night"),
        ("a cat standing on the left of a dog", "a cat to the left of a dog"),
        ("a cat on the top of a car", "a cat on a car"),
        ("a cat at the top of a tree", "a cat on a tree"),
        ("a cat at the top of the image", "a cat at the top"),
        ("a house at the foot of a mountain", "a house next to a mountain"),
        ("a dog at the feet of a man", "a dog next to a man"),
        ("a bear on the side of a house", "a bear next to a house"),
        ("a parrot on the shoulder of a man", "a parrot on a man"),
        ("a cat on the back of a horse", "a cat on a horse"),
        ("a cat on the left hand side of a horse", "a cat to the left of a horse"),
        ("a boat in the middle of the picture", "a motor boat in the middle"),
        ("a cat in the heart of a city", "a cat, in a city"),
        ("eine Katze am Fuß eines Baumes", "a cat next to a tree"),
        ("un chat au pied d'un arbre", "a cat next to a tree"),
        ("un gato al pie de un árbol", "a cat next to a tree"),
        ("un gatto ai piedi di un albero", "a cat next to a tree"),
        ("um gato ao pé de uma árvore", "a cat next to a tree"),
        ("een kat aan de voet van een boom", "a cat next to a tree"),
        ("kot u stóp drzewa", "a cat next to a tree"),
    ],
)
def test_a_noun_within_a_preposition_is_no_thing(prompt: str, meaning: str) -> None:
    assert terse(read(prompt).wish) == meaning


@pytest.mark.parametrize(
    ("prompt", "holder"),
    [
        ("an astronaut riding a giraffe on the moon, holding a green umbrella", "astronaut"),
        ("a man riding a horse, wearing a red hat", "man"),
        ("a man riding a horse, with a red hat", "man"),
        ("a man riding a horse and carrying a bag", "man"),
        ("a dog chasing a cat, wearing a hat", "dog"),
        ("a dog chasing a cat wearing a hat", "cat"),
        ("un homme sur un cheval, tenant un parapluie", "man"),
    ],
)
def test_a_participle_after_a_comma_is_about_the_subject(prompt: str, holder: str) -> None:
    wish = read(prompt).wish
    holders = [THINGS[wish.groups[relation.a].thing].name for relation in wish.relations if relation.name == "holding"]
    assert holders == [holder]


@pytest.mark.parametrize(
    ("prompt", "bearer"),
    [
        ('a shop sign that says "OPEN" above a yellow door, with a robot waving in front of it', "door"),
        ("a cat next to a house, with a dog behind it", "house"),
        ("a cat behind a house, and next to it a dog", "house"),
        ("a castle on a mountain, a dragon above it", "castle"),
    ],
)
def test_it_is_the_last_thing_before_its_clause(prompt: str, bearer: str) -> None:
    wish = read(prompt).wish
    assert THINGS[wish.groups[wish.relations[-1].b].thing].name == bearer


def test_a_second_background_is_missed() -> None:
    reading = read("a white sailboat on the sea at sunset")
    assert (reading.wish.background, reading.missing) == ("sea", ("at sunset",))


@pytest.mark.parametrize("prompt", ["9" * 4000, "x" * 4000, f'a cat without "{"y" * 50}"'])
def test_errors_quote_no_more_than_a_line(prompt: str) -> None:
    with pytest.raises(InputError) as refusal:
        read(prompt)
    assert len(str(refusal.value)) < 400
