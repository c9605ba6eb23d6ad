"""What is known of languages: function words, numbers, negations and colours, and which language a text is in.

It serves checks that must not take a word of one language for a word of another. A word that ends in ``*`` stands for
all words that begin so. A language that is not here is "xx": nothing is concluded from its words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

__all__ = ["LANGUAGES", "UNKNOWN", "Language", "fold", "language_of", "pieces_of", "tokens_of", "without_particle"]


class Words:
    """A set of words, some of which are given by their beginning."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self._whole = frozenset(fold(word) for word in words if not word.endswith("*"))
        self._beginnings = tuple(fold(word[:-1]) for word in words if word.endswith("*"))

    def __contains__(self, word: str) -> bool:
        return word in self._whole or (bool(self._beginnings) and word.startswith(self._beginnings))


@dataclass(frozen=True, eq=False)
class Language:
    """The words of one language that checks know."""

    name: str
    function: Collection[str] | Words
    """Words that ask for nothing by themselves, and words with which people ask for an image."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    negations: Words = field(default_factory=lambda: Words(""))
    colours: Mapping[str, Words] = field(default_factory=dict)
    shades: Mapping[str, Words] = field(default_factory=dict)
    """Words that are colours and more: a text that has one may mean the colour, and may not."""
    counters: str = ""
    """Characters after which a numeral written with a character is a number of things."""
    spaced: bool = True
    """Whether spaces stand between its words."""

    def number(self, word: str) -> int | None:
        """The whole number that a word or its digits mean; None if it is no number."""
        if self.name == "ar":
            word = without_particle(word)
        return int(word) if word.isdecimal() and len(word) < 10 else self.numbers.get(word)

    def colours_of(self, word: str, *, shades: bool = False) -> frozenset[str]:
        """The colours that a word means; with ``shades``, those that it may mean."""
        return _colours_of(self, word, shades)


@lru_cache(maxsize=4096)  # checks ask for each word of a text again and again
def _colours_of(language: Language, word: str, shades: bool) -> frozenset[str]:
    if language.name == "ar":
        word = without_particle(word)
    tables = (language.colours, language.shades) if shades else (language.colours,)
    return frozenset(colour for table in tables for colour, words in table.items() if word in words)


_LOOSE_MARKS: Final = re.compile("[\u0300-\u036f\u064b-\u065f\u0640]")
"""Marks that are often left out: accents, Arabic vowels and the Arabic stroke that lengthens a word."""


@lru_cache(maxsize=4096)
def fold(text: str) -> str:
    """The text for comparisons: in lower case, without accents and differences of width."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFC", _LOOSE_MARKS.sub("", decomposed))


_MARKS: Final = (
    "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0951-\u0957"
    "\u0e31-\u0e3a\u0e47-\u0e4e\u200c\u200d"
)
"""Vowel signs and accents, which belong to the letter before them."""
_UNSPACED: Final = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
"""Japanese, Chinese and Thai characters, of which each counts as a word."""
_TOKEN: Final = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|(?:(?![{_UNSPACED}])[^\W_][{_MARKS}]*)+")


def tokens_of(text: str) -> list[str]:
    """The words in order, folded; each character of a script without spaces is one."""
    return [fold(piece.group()) for piece in pieces_of(text)]


def pieces_of(text: str) -> Iterator[re.Match[str]]:
    """The words with their places in the text, as they were written."""
    return _TOKEN.finditer(text)


_ARABIC_PARTICLE: Final = re.compile("^(?:وال|بال|كال|فال|لل|ال|[وبلفك])(?=.{3})")


def without_particle(word: str) -> str:
    """An Arabic word without the article and the particles that are written together with it."""
    return _ARABIC_PARTICLE.sub("", word, count=1)


# --- tables ---------------------------------------------------------------------------------------------------------


def _numbers(text: str) -> dict[str, int]:
    """Numbers in order from one, with variants of one number joined by slashes."""
    return {fold(word): number for number, words in enumerate(text.split(), start=1) for word in words.split("/")}


_GROUPS: Final = {"duo": 2, "trio": 3, "quartet": 4, "quartett": 4, "quatuor": 4, "cuarteto": 4, "quartetto": 4}

_COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")


def _colours(text: str) -> dict[str, Words]:
    """The words of each of ``_COLOURS``, with bars between them."""
    return {colour: Words(words) for colour, words in zip(_COLOURS, text.split("|"), strict=True)}


_BARE_CONTRACTIONS: Final = "dont doesnt isnt arent cant wont"
"""As people type them."""

_ENGLISH: Final = Language(
    "en",
    Words(
        "a an the and or but of to in on at by with from for as is are am was were be been being it "
        "its that which this "
        "these those there here one each some any all both every either other another such so then "
        "than too also very "
        "really quite rather just only exactly precisely about around into onto over under above "
        "below behind before "
        "after front back left right top bottom near next beside besides between among amid inside outside within "
        "through across against along toward towards off up down out beyond upon per via if when "
        "while where who whom "
        "whose what how why not no nor without never none nothing nobody "
        "i me my mine we us our you your he him his she her they them their myself somebody someone "
        "something anything "
        "do does did done doing don doesn didn isn aren wasn weren can could would should will shall "
        "may might must "
        "have has having had want wants wanted need needs needed like love please thanks thank hi "
        "hello hey okay ok "
        "give get got let make makes making made create creates creating generate generating draw "
        "drawing draws paint "
        "whip design produce render show shows showing shown depict depicts depicting featuring feature features "
        "containing contain contains including include includes add put picture pictures image images photo photos "
        "illustration scene visual visuals graphic artwork "
        "t s m re ve ll d nice good great cool beautiful lovely pretty awesome amazing wonderful gorgeous stunning "
        "interesting fun perfect best well ideally maybe perhaps possibly possible preferably optionally probably "
        "actually basically kind sort bit lot lots way stuff thing things idea ideas help try use using based "
        "sure simply together set side total precisely altogether coloured colored looks look looking having along "
        "pls plz thx um uh er hmm oh wow yeah think thinking know mind hoping hope wondering wonder able gonna wanna "
        "everyone else yet "
        "still even though "
        "because since until however again lol mess last first try tries same otherwise instead "
        "called named says say saying reads reading read written writing "
        f"{_BARE_CONTRACTIONS}"
    ),
    _numbers(
        "one/single two/pair/couple/both/twin/twins/twice three/triplet/triplets/thrice four five "
        "six seven eight nine "
        "ten eleven twelve/dozen thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
    )
    | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100}
    | _GROUPS,
    Words(f"no not without never none nothing nobody neither nor cannot excluding minus zero {_BARE_CONTRACTIONS}"),
    _colours(
        "red reddish crimson scarlet vermilion|orange|yellow yellowish golden|green greenish turquoise|"
        "blue bluish turquoise navy azure|purple violet|pink pinkish magenta|brown brownish|black|"
        "white|grey gray greyish"
    ),
    _colours(
        "ruby burgundy maroon ginger auburn russet rust rusty copper coppery cherry rose ember fiery|"
        "amber apricot tangerine ginger russet copper coppery rust rusty gold golden peach coral fiery|"
        "gold amber mustard lemon blond blonde saffron ochre honey|"
        "emerald olive lime teal mint jade viridian sage moss verdant|"
        "cobalt teal cyan indigo sapphire cerulean ultramarine aqua|"
        "lavender lilac indigo magenta mauve plum amethyst|"
        "rose fuchsia salmon coral blush|"
        "chestnut bronze tan beige russet auburn copper coppery rusty hazel chocolate mahogany|"
        "ebony jet onyx ink inky obsidian monochrome|ivory snowy cream creamy pearl monochrome|"
        "silver silvery charcoal slate ashen steel monochrome"
    ),
)

_OTHER_LANGUAGES: Final = (
    Language(
        "de",
        Words(
            "der die das den dem des ein eine einen einem einer eines und oder aber von vom zu zum "
            "zur in im ins auf an "
            "am bei mit aus fur fuer als ist sind war sein seine seinen seinem seiner ihr ihre ihren "
            "ihrem ihrer es sie "
            "er wir ich mir mich uns du dir dich sich man das dass dieser diese dieses diesem diesen "
            "jener welche die "
            "davor dahinter daneben darauf daran darin dabei darunter darüber drauf drin "
            "uber ueber unter vor hinter neben zwischen durch gegen um nach bis ohne kein keine "
            "keinen keinem keiner "
            "nicht nie niemand nichts links rechts oben unten vorne vorn hinten mitte dort hier wo "
            "wie was wenn wahrend "
            "auch noch nur genau ganz sehr mal bitte danke hallo hatte hatten hat haben mochte "
            "möchte mochten wurde würde "
            "gern gerne brauche brauchen brauchst kannst konntest könntest konnen können soll sollen "
            "sollte sollten darf "
            "mach mache machen machst erstelle erstellen zeichne zeichnen male generiere zeig zeige "
            "zeigt bild bilder "
            "bildes foto fotos szene etwas irgendwas schon schön schön schöne schones schönes "
            "schönen schoner hubsch "
            "hübsches "
            "tolles nett nettes am liebsten wenn moglich möglich vielleicht idealerweise eventuell "
            "wird werden steht "
            "stehen liegt liegen sitzt sitzen befindet befinden gibt "
            "darauf drauf worauf da so dann denn doch je alle alles beide "
            "exakt präzise lediglich bloß insgesamt zusammen haargenau ausschließlich sichtbar "
            "erkennbar sehen"
        ),
        _numbers(
            "ein/eine/einen/einem/einer/eines zwei/zwo/paar/beide/beiden drei vier funf/fuenf sechs "
            "sieben acht neun "
            "zehn elf zwolf/zwoelf/dutzend"
        )
        | _GROUPS,
        Words("ohne kein keine keinen keinem keiner keines nicht nie niemals niemand niemanden nichts weder noch"),
        _colours(
            "rot rote* roten rotes rotem knallrot* scharlach* purpurrot*|orange orangefarben* orangen*|"
            "gelb* golden* blond*|grun* smaragd* turkis*|blau* turkis* himmelblau* dunkelblau* hellblau*|"
            "lila violett* purpur*|rosa pink* rosafarben*|braun* bronze*|schwarz*|weiss weisse*|"
            "grau* silber* silbern*"
        ),
    ),
    Language(
        "fr",
        Words(
            "le la les l un une des du de d et ou mais a à au aux en dans sur sous avec sans par "
            "pour vers chez entre "
            "devant derriere derrière est sont etre c ce cet cette ces qui que qu quoi dont où on il "
            "elle ils elles je j "
            "me m moi nous vous tu te toi son sa ses leur leurs mon ma mes notre votre ne n pas plus "
            "jamais aucun aucune "
            "ni rien personne tres très bien aussi comme si tout toute tous toutes autre autres cote "
            "côté gauche droite "
            "haut bas milieu centre fond travers autour pres près loin apres avant pendant lors plein pleine "
            "s y se ai as avons avez ont avoir aimerais aimerait voudrais veux veut besoin faut peux "
            "pouvez pourriez "
            "pourrais fais fait faites faire creer crée creez cree dessine dessinez dessiner genere generez montre "
            "montrant montrez image images photo photos dessin illustration scene s'il plait plaît "
            "merci bonjour salut "
            "quelque chose joli jolie beau belle sympa possible idealement idéalement peut "
            "exactement précisément seulement uniquement juste simplement voit"
        ),
        _numbers(
            "un/une deux/paire/couple trois quatre cinq six sept huit neuf dix onze douze/douzaine "
            "treize quatorze quinze"
        )
        | _GROUPS,
        Words("sans pas aucun aucune jamais ni rien personne"),
        _colours(
            "rouge rouges ecarlate* vermeil* roux rousse rousses|orange oranges orangee* roux rousse "
            "rousses|jaune jaunes dore "
            "doree dores dorees blond blonde blonds blondes|vert verte verts vertes emeraude turquoise*|"
            "bleu bleue bleus bleues turquoise* azur|violet violette violets violettes mauve pourpre|rose roses|"
            "brun brune bruns brunes marron marrons|noir noire noirs noires|blanc blanche blancs blanches|"
            "gris grise grises argente argentee argentes argentees"
        ),
    ),
    Language(
        "es",
        Words(
            "el la los las lo un una unos unas de del y e o u pero a al en con sin por para entre "
            "sobre bajo ante desde "
            "hasta hacia tras es son esta estan está están ser estar que quien cual cuyo donde "
            "cuando como si no ni "
            "nunca nada nadie ningun ninguna ningún ninguno su sus mi mis tu tus nuestro yo me te se "
            "le les nos ella el "
            "ellos ellas este esta estos estas ese esa eso esto muy mas más tan tambien también solo "
            "sólo todo toda "
            "todos todas otro otra otros otras lado izquierda derecha arriba abajo delante detras "
            "detrás encima debajo "
            "dentro fuera cerca junto medio centro fondo alrededor mientras "
            "quiero quisiera queria quería gustaria gustaría necesito puedes podrias podrías puede "
            "haz hazme hacer crea "
            "crear dibuja dibujame dibújame genera muestra mostrando imagen imagenes foto fotos dibujo ilustracion "
            "escena por favor gracias hola algo bonito bonita lindo linda posible idealmente quizas "
            "quizás tal vez hay "
            "haya tiene tenga lleva ponga exactamente precisamente únicamente solamente justo justamente"
        ),
        _numbers(
            "uno/un/una dos/par/pareja/ambos tres cuatro cinco seis siete ocho nueve diez once doce/"
            "docena trece catorce "
            "quince"
        )
        | _GROUPS,
        Words("sin no ningun ninguna ninguno nunca nada nadie ni tampoco"),
        _colours(
            "rojo* roja* escarlata* carmesi pelirroj*|naranja* anaranjad* pelirroj*|amarill* dorad* "
            "rubi*|verde* esmeralda turquesa*|"
            "azul* turquesa* celeste*|morad* violeta* purpura lila*|rosa rosas rosad*|marron* cafe "
            "castan*|negr*|blanc*|"
            "gris* platead*"
        ),
    ),
    Language(
        "it",
        Words(
            "il lo la i gli le l un uno una dei degli delle del dello della dell di d e ed o ma a al "
            "allo alla ai alle "
            "in nel nello nella nei nelle con senza su sul sullo sulla sui sulle per tra fra da dal "
            "dalla e è sono sta "
            "stanno che chi cui dove quando come se non ne nessun nessuna nessuno mai niente nulla "
            "suo sua suoi sue mio "
            "mia io mi ti si ci vi lui lei loro questo questa questi queste quello quella molto piu "
            "più anche solo tutto "
            "tutta tutti tutte altro altra sinistra destra sopra sotto davanti dietro dentro fuori "
            "vicino accanto mezzo "
            "centro sfondo mentre vorrei voglio serve puoi potresti fai fammi crea disegna disegnami genera mostra "
            "immagine immagini foto disegno illustrazione scena favore grazie ciao qualcosa bello "
            "bella possibile magari esattamente precisamente solamente soltanto unicamente proprio"
        ),
        _numbers(
            "uno/un/una due/paio/coppia/entrambi tre quattro cinque sei sette otto nove dieci undici dodici/dozzina"
        )
        | _GROUPS,
        Words("senza non nessun nessuna nessuno mai niente nulla ne neanche"),
        _colours(
            "ross* scarlatt*|arancion*|giall* dorat* oro biond*|verd* smeraldo turchese|blu azzurr* "
            "celest* turchese|viola "
            "violett*|rosa|marron* brun*|ner*|bianc*|grig* argent*"
        ),
    ),
    Language(
        "pt",
        Words(
            "o a os as um uma uns umas de do da dos das e ou mas a à ao aos às em no na nos nas num "
            "numa com sem por pelo "
            "pela para entre sobre sob ante desde até ate é e são sao está esta estão ser estar que "
            "quem onde quando como "
            "se não nao nem nunca nada ninguém ninguem nenhum nenhuma seu sua seus suas meu minha eu "
            "me te lhe nos ele "
            "ela eles elas este essa esse isso isto muito mais também tambem só so todo toda todos "
            "todas outro outra "
            "lado esquerda direita cima baixo frente trás atras dentro fora perto junto meio centro "
            "fundo enquanto quero "
            "queria gostaria preciso pode poderia faça faca fazer crie desenhe gere mostre imagem "
            "imagens foto fotos "
            "desenho ilustração ilustracao cena favor obrigado obrigada olá ola algo bonito bonita possível talvez "
            "exatamente exactamente precisamente somente apenas unicamente justamente há"
        ),
        _numbers("um/uma dois/duas/par/casal/ambos tres/três quatro cinco seis sete oito nove dez onze doze/dúzia")
        | _GROUPS,
        Words("sem não nao nenhum nenhuma nunca nada ninguém ninguem nem"),
        _colours(
            "vermelh* ruiv*|laranja* alaranjad* ruiv*|amarel* dourad* loir*|verde* esmeralda "
            "turquesa*|azul azuis turquesa*|rox* "
            "violeta* lilas|rosa rosas cor-de-rosa|marrom marrons castanh*|pret* negr*|branc*|cinza* prate*"
        ),
    ),
    Language(
        "nl",
        Words(
            "de het een en of maar van naar in op aan bij met zonder uit voor als is zijn was wordt "
            "er dat die dit deze "
            "wie wat waar hoe niet geen nooit niemand niets zijn haar hun mijn ik me mij wij we ons "
            "je jij u hij zij ze "
            "onder boven achter naast tussen door tegen om tot links rechts boven beneden midden ook "
            "nog alleen precies "
            "heel zeer graag alsjeblieft dank hallo wil zou willen kun kan kunt nodig maak maken "
            "teken tekenen beeld "
            "afbeelding plaatje foto iets mooi mooie leuk mogelijk misschien staat ligt zit "
            "exact slechts uitsluitend totaal"
        ),
        _numbers("een/één twee/paar drie vier vijf zes zeven acht negen tien elf twaalf/dozijn") | _GROUPS,
        Words("zonder geen niet nooit niemand niets noch"),
        _colours(
            "rood rode|oranje|geel gele gouden goud blond*|groen*|blauw* turquoise|paars* violet*|"
            "roze|bruin*|zwart*|wit witte|"
            "grijs grijze zilver*"
        ),
    ),
    Language(
        "pl",
        Words(
            "i a w we z ze na do od po pod nad przy przed za o u dla bez nie ani nigdy nikt nic jest "
            "są byl który która "
            "które jak co gdzie kiedy to ten ta te tego tej tym jego jej ich mój moja moje się mi "
            "mnie ja my ty on ona "
            "oni bardzo też tylko proszę dziękuję chcę chciałbym chciałabym potrzebuję zrób narysuj "
            "stwórz wygeneruj "
            "pokaż obraz obrazek zdjęcie rysunek scena coś ładny ładne może obok między lewo prawo "
            "górze dole środku tle dokładnie ściśle równo akurat jedynie łącznie razem sumie wyłącznie czy"
        ),
        _numbers("jeden/jedna/jedno dwa/dwie/dwoje/para trzy/troje cztery pięć sześć siedem osiem dziewięć dziesięć"),
        Words("bez nie ani nigdy nikt nic żaden żadna żadne żadnych nikogo"),
        _colours(
            "czerwon* rud*|pomarańcz* rud*|żółt* złot* blond|zielon* szmaragd*|niebiesk* błękit* "
            "turkus* granat*|fiolet*|różow*|"
            "brązow*|czarn*|biał*|szar* srebr*"
        ),
    ),
    Language(
        "tr",
        Words(
            "bir ve veya ile için de da ki bu şu o olan olarak gibi çok daha en her hiç değil yok ne "
            "mi mı ben bana beni "
            "sen biz lütfen istiyorum isterim lazım yap çiz çizer misin oluştur göster resim resmi görsel fotoğraf "
            "fotoğrafı bir şey güzel üzerinde altında yanında arkasında önünde içinde arasında var "
            "sağ sol sağda solda tam olarak kesin kesinlikle tamı tamına sadece yalnızca yalnız toplam toplamda mu mü"
        ),
        _numbers("bir iki/çift üç dört beş altı yedi sekiz dokuz on"),
        Words("yok değil hiç hiçbir olmadan olmasın olmayan"),
        _colours(
            "kırmızı* kızıl*|turuncu*|sarı* altın*|yeşil*|mavi* turkuaz*|mor*|pembe*|kahverengi*|"
            "siyah*|beyaz*|gri* gümüş*"
        ),
    ),
    Language(
        "ru",
        Words(
            "и а но или в во на с со к ко у о об от до из за по под над при перед между через для "
            "без не ни нет никто "
            "ничего никогда это этот эта эти тот та те то что чтобы который* которая которые котором "
            "которой как так где "
            "когда если он она они оно его её ее их им ей ему него нее неё них себя свой свою своей "
            "я мы мне меня нас ты "
            "вы мой моя мое мои твой наш очень также тоже только просто еще ещё уже все всё весь вся "
            "другой рядом слева "
            "справа сверху снизу внизу вверху спереди сзади впереди позади около возле вокруг "
            "середине центре фоне фон "
            "нарис* созда* сдела* сгенер* покаж* изобраз* изображ* картин* рисун* рисунок фото "
            "фотограф* сцен* пожалуйста "
            "спасибо привет хочу хотел* хотелось нужен нужна нужно нужны можешь можно могли надо бы "
            "был была были быть "
            "есть красив* крут* классн* возможно желательно может что-нибудь нибудь что-то какой "
            "какая пусть стоит лежит "
            "сидит находится ли же вот ровно точно именно всего лишь строго итого изображении"
        ),
        _numbers(
            "один/одна/одно/одного/одной/одну два/две/двое/двух/двумя/пара/пару/пары три/трое/трех/тремя "
            "четыре/четверо/четырех/четырьмя пять/пятеро/пяти шесть/шестеро/шести семь/семеро/семи восемь/восьми "
            "девять/девяти десять/десяти одиннадцать двенадцать/дюжина"
        ),
        Words("без не нет ни никто никого ничего никогда никак*"),
        _colours(
            "красн* алый алая алое алые рыж* багров*|оранжев* рыж*|желт* золот* белокур* "
            "светловолос*|зелен* изумруд* бирюзов*|"
            "син* голуб* бирюзов* лазурн*|фиолетов* сирен* пурпурн*|розов*|коричнев* бур* кашта*|"
            "черн*|бел*|сер* серебр*"
        ),
    ),
    Language(
        "ar",
        Words(
            "في من على الى إلى عن مع بدون دون بلا لا ليس ليست لم لن غير و أو او ثم لكن هو هي هم هذا "
            "هذه ذلك تلك التي الذي "
            "الذين ما ماذا كيف أين حيث عند بين تحت فوق أمام امام خلف وراء بجانب جانب داخل خارج حول "
            "قرب يمين يسار أعلى "
            "أسفل وسط خلفية أن ان إن كان كانت يكون تكون كل بعض جدا جداً فقط أيضا ايضا لي لنا أنا انا نحن أنت انت "
            "أريد اريد أحتاج احتاج ممكن يمكنك هل ارسم أرسم اصنع أنشئ انشئ اجعل أظهر صورة صوره رسم "
            "رسمة لوحة مشهد من "
            "فضلك شكرا مرحبا شيء جميل جميلة رائع رائعة ربما وهو وهي به بها له لها فيه فيها عليه "
            "عليها مكتوب يوجد توجد قم "
            "بإنشاء برسم لصورة بصورة بالضبط تماما تحديدا بالتحديد بدقة حصرا مجموع إجمالي المجموع"
        ),
        _numbers(
            "واحد/واحدة اثنان/اثنين/اثنتان/اثنتين ثلاث/ثلاثة أربع/أربعة/اربع/اربعة خمس/خمسة ست/ستة سبع/سبعة "
            "ثمان/ثماني/ثمانية تسع/تسعة عشر/عشرة"
        ),
        Words("بدون دون بلا لا ليس ليست غير لم لن ولا خال خالي خالية خالٍ"),
        _colours(
            "أحمر احمر حمراء الأحمر الحمراء حمر أحمرا|برتقالي* البرتقالي*|أصفر اصفر صفراء الأصفر "
            "الصفراء ذهبي* الذهبي*|أخضر اخضر "
            "خضراء الأخضر الخضراء|أزرق ازرق زرقاء الأزرق الزرقاء فيروزي*|بنفسجي* البنفسجي* أرجواني*|"
            "وردي* الوردي*|بني بنية البني "
            "البنية|أسود اسود سوداء الأسود السوداء|أبيض ابيض بيضاء الأبيض البيضاء|رمادي* الرمادي* فضي* الفضي*"
        ),
    ),
    Language(
        "hi",
        Words(
            "का की के को में से पर और या लेकिन एक यह ये वह वे जो जिस जिसमें जिसके जिसकी कि है हैं था "
            "थी थे हो होना होनी होने "
            "ने भी ही तो तक साथ लिए बिना नहीं न ना मत बीच नीचे ऊपर पास पीछे आगे सामने अंदर बाहर बगल "
            "दाएं बाएं दाईं बाईं ओर तरफ "
            "मुझे मैं मेरे मेरी मेरा हमें आप अपने अपनी अपना उस उसके उसकी इस इसके कृपया धन्यवाद "
            "नमस्ते चाहिए चाहता चाहती बनाओ "
            "बनाएं बनाइए बना बनाना दो दिखाओ दिखाएं तस्वीर चित्र फोटो छवि दृश्य कुछ सुंदर अच्छा अच्छी "
            "बहुत शायद कर करें करते रहा "
            "रही रहे हुआ हुई हुए वाला वाली वाले कोई सके सकते लिखा "
            "ठीक बिल्कुल बिलकुल सटीक केवल सिर्फ सिर्फ़ मात्र कुल क्या"
        ),
        _numbers("एक दो/दोनों तीन/तीनों चार/चारों पांच/पाँच छह/छः सात आठ नौ दस"),
        Words("बिना नहीं न ना मत रहित"),
        _colours(
            "लाल|नारंगी|पीला पीली पीले सुनहरा सुनहरी सुनहरे|हरा हरी हरे|नीला नीली नीले|बैंगनी|गुलाबी|"
            "भूरा भूरी भूरे|काला काली काले|"
            "सफेद सफ़ेद|स्लेटी धूसर चांदी"
        ),
    ),
    Language(
        "ko",
        Words(
            "그리고 또는 하지만 그 이 저 것 수 등 및 한 하나* 있는 있고 있는데 있어* 있다 있습니다 "
            "없는 없이 없고 없어* 없게 아닌 않는 않은 "
            "말고 위에 위의 아래 아래에 옆에 옆의 앞에 뒤에 안에 밖에 사이에 속에 중앙에 가운데 "
            "왼쪽* 오른쪽* 배경* 에서 그려* 그린 만들어* "
            "생성* 보여* 주세요 줘 줄래 주실* 싶어* 싶습니다 원해* 원합니다 필요* 이미지* 그림* "
            "사진* 장면* 부탁* 안녕* 감사* 제발 좀 뭔가 "
            "예쁜 멋진 아름다운 좋은 가능하면 혹시 아마 제가 저는 나는 내 우리 너무 아주 매우 정말 "
            "함께 같은 위한 입은* 쓴 들고 적힌 적혀* 쓰인 쓰여* 라고* 이라고* 마리* 송이* 그루* "
            "켤레* 명이 명의 "
            "정확히 정확하게 딱 꼭 오직 단지 단 총 모두 전부 합쳐 합해서 "
            "있습니까 있나요 보입니까 보이나요 정확"
        ),
        _numbers("한/하나 두/둘/두개 세/셋/세개 네/넷 다섯 여섯 일곱 여덟 아홉 열"),
        Words("없는 없이 없고 없어* 없게 없음 없는데 아닌 않* 안 못 말고 말아* 제외*"),
        _colours(
            "빨간* 빨강* 붉은 적색|주황*|노란* 노랑* 금색* 황금*|초록* 녹색* 푸른 연두*|파란* 파랑* "
            "푸른 청색*|보라*|분홍* 핑크*|갈색*|"
            "검은* 검정* 까만*|흰 하얀* 흰색* 하양*|회색* 은색*"
        ),
        counters="마명개송대권그잔채장벌켤",
    ),
    Language(
        "zh",
        Words(
            "的 地 得 了 着 过 在 是 有 和 与 跟 及 或 而 且 但 并 把 被 让 使 给 对 从 向 往 到 于 "
            "以 为 之 其 他 她 它 我 你 您 们 这 那 哪 "
            "个 只 张 幅 条 位 名 朵 本 辆 匹 头 颗 棵 座 艘 架 双 对 些 种 件 片 块 根 支 杯 碗 盘 "
            "群 间 家 场 道 束 串 把 顶 株 副 面 台 "
            "一 上 下 里 内 外 中 前 后 左 右 旁 边 间 方 侧 面 处 时 能 可 会 要 想 请 帮 画 图 像 "
            "照 片 绘 制 作 做 生 成 来 去 出 起 "
            "吗 呢 吧 啊 呀 哦 嗯 也 都 还 就 很 非 常 太 更 最 好 美 丽 漂 亮 些 点 什 么 怎 样 如 "
            "果 所 没 不 无 别 勿 需 求 希 望 "
            "正 穿 戴 写 站 坐 用 风 格 個 隻 張 條 與 這 們 請 幫 畫 圖 來 會 還 沒 無 裡 裏 間 著 "
            "寫 後 邊 時 點 麼 樣 從 對 給 讓 為 於 恰 刚 剛 总 總 共 仅 僅 否 "
        ),
        _numbers("一 二/两/俩 三/仨 四 五 六 七 八 九 十"),
        Words("没 不 无 無 勿 别 非 沒"),
        _colours("红 紅 赤|橙 橘|黄 黃|绿 綠 翠|蓝 藍|紫|粉|棕 褐|黑|白|灰"),
        counters="个個只隻张張条條位名朵本辆輛匹头頭颗顆棵座艘架把双雙对對件片块塊根支杯碗盘盤群间間家束串顶頂株台人岁",
        spaced=False,
    ),
    Language(
        "ja",
        Words(
            "絵 画 像 描 写 真 人 枚 匹 個 本 羽 台 冊 頭 輪 隻 杯 皿 軒 一 上 下 中 前 後 横 隣 間 "
            "側 内 外 右 左 的 風 様 感 私 使 作 欲 "
            "願 何 所 時 見 方 場 物 事 者 入 出 着 持 立 座 置 無 非 不 付 書 々 葉 葉 成 生 々 的 "
        ),
        _numbers("一 二 三 四 五 六 七 八 九 十"),
        Words("無 无 非 不"),
        _colours("赤 紅|橙|黄|緑|青 蒼|紫|桃|茶|黒|白|灰"),
        counters="匹人個本枚羽台冊頭つ輪隻杯皿軒艘",
        spaced=False,
    ),
)

LANGUAGES: Final = {language.name: language for language in (_ENGLISH, *_OTHER_LANGUAGES)}
UNKNOWN: Final = Language("xx", Words(""))
"""A language without a table."""

_SCRIPTS: Final = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("xx", re.compile("[\u0370-\u03ff\u0530-\u05ff\u0980-\u10ff\u1200-\u1cff]")),
)
_LATIN: Final = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_LETTERS_PER_CHARACTER: Final = {"ja": 3, "zh": 3}
"""One of these characters says as much as several letters."""


@lru_cache(maxsize=1024)
def language_of(text: str) -> Language:
    """The language of a text: by its script, and for Latin letters by its function words.

    Latin words without any function word are taken for English, unless they have letters that English lacks.
    """
    latin = len(_LATIN.findall(text))
    counts = {name: len(script.findall(text)) * _LETTERS_PER_CHARACTER.get(name, 1) for name, script in _SCRIPTS}
    if counts["ja"]:
        counts["ja"] += counts["zh"]
    name = max(counts, key=lambda name: counts[name])
    if counts[name] > latin / 2:
        return LANGUAGES.get(name, UNKNOWN)
    return _latin_language(text)


_OTHER_LATIN: Final = (
    Words(
        "di dan yang dengan ke dari untuk pada atas bawah ini itu ada satu dua tiga empat lima enam tidak jangan nya"
    ),
    Words("och en ett det som inte med pa av under over den de ar tva tre fyra fem utan ska bakom bredvid nagon"),
    Words("og en et det som ikke med pa af av under over den de er to tre fire fem uden uten skal bag ved siden"),
    Words("a se na je s v do za pod nad dva dve tri ctyri pet bez neni ktery ktera jeden jedna jsou kolem u"),
    Words("la si cu pe in din un o doi doua trei patru cinci fara nu care este sunt langa sub de pentru"),
    Words("es egy a az nem van vannak ket harom negy ot nelkul alatt felett mellett hogy amely"),
    Words("ja on ei kaksi kolme nelja viisi ilman alla paalla vieressa joka ovat eika mutta"),
    Words("mot va cua tren duoi ben canh khong co hai ba bon nam voi trong nguoi cho cai con mau dang"),
)
"""Function words and numbers of Indonesian, Swedish, Danish and Norwegian, Czech and Slovak, Romanian, Hungarian,
Finnish, and Vietnamese, without accents: such a text is at least not taken for English."""


def _is_named(language: Language, word: str) -> bool:
    """Whether a language has a word among its numbers or its colours."""
    return word in language.numbers or bool(language.colours_of(word))


def _latin_language(text: str) -> Language:
    words = tokens_of(text)
    scores = {
        language.name: sum(word in language.function or word in language.numbers for word in words)
        for language in LANGUAGES.values()
        if language.spaced and language.name not in ("ru", "ar", "hi", "ko")
    }
    # "tres" is a number in Spanish, and without its accent a function word in French: numbers and colours tell them
    # apart. English comes first where several are equal.
    plain = [word for word in words if word in text.lower()]  # without accents as it was written, too
    evidence = {name: sum(_is_named(LANGUAGES[name], word) for word in plain) for name in scores}
    best = max(scores, key=lambda name: (scores[name], evidence[name]))
    if any(sum(word in language for word in words) > max(scores[best], len(words) / 8) for language in _OTHER_LATIN):
        return UNKNOWN
    if scores[best] * 8 >= len(words) and (best == "en" or scores[best] > scores["en"]):
        return LANGUAGES[best]
    return UNKNOWN if re.search("[\u00c0-\u024f\u1e00-\u1eff]", text) and not scores["en"] else LANGUAGES["en"]
