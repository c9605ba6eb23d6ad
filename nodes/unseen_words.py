"""How chat models say, in languages other than English, that they see no image.

What follows the noun decides: "ich sehe kein Bild." is about the whole image, "ich sehe kein Bild an der Wand" is about
what it shows.
"""

from __future__ import annotations

from typing import Final

__all__ = ["IN_OTHER_LANGUAGES"]


def _phrases(image: str, then: str, *phrases: str) -> str:
    """A pattern of phrases: <image> stands for the noun, <end> for the end of a clause or for what may still follow."""
    end = rf"(?=\W*\Z|\s*[.,;:!?()\[\]–—]|\s(?:{then}))"
    return "|".join(phrase.replace("<image>", image).replace("<end>", end) for phrase in phrases)


_SPANISH: Final = _phrases(
    r"(?:im[aá]gen(?:es)?|fotos?|fotograf[ií]as?)\b",
    r"adjunt|proporcion|disponible|incluid|aquí|as[ií] que|por lo que|(?:en|con) (?:est[ea]|el|la|tu|su|nuestra)"
    r" (?:conversaci|mensaje|chat|consulta|pregunta|solicitud)",
    r"\bno (?:veo|hay|tengo|encuentro|detecto|recib[ií]|he recibido|puedo encontrar)"
    r" (?:(?:la|una|ninguna|tu|su) )?<image><end>",
    r"\bno (?:puedo|es posible|tengo la capacidad de) (?:ver|visualizar|acceder a|analizar)(?: o \w+)?"
    r" (?:(?:la|una|las|ninguna|tu|su) )?<image>",
    r"\bno se (?:me )?(?:ha |han )?(?:proporcion|adjunt|inclu|envi|subi|carg|recibi)\w+"
    r" (?:(?:la|una|ninguna) )?<image>",
    r"\Aninguna <image>\W*\Z",
    r"\bninguna <image> (?:fue |ha sido )?(?:proporcion|adjunt|inclui|envia|subid|cargad|recibid|disponible)",
    r"\b<image> no (?:se |me )?(?:ha sido |ha |fue |está |es )?(?:proporcion|adjunt|inclu|envia|carg|recibi|disponible"
    r"|accesible)",
    r"\b(?:no tengo|sin) (?:ningún )?acceso a (?:(?:la|las|una|ninguna|tu|su|esa|esta) )?<image>",
    r"\b(?:s[oó]lo|[uú]nicamente|solamente) puedo (?:procesar|leer|analizar|interpretar|entender) texto<end>",
    r"\bpuedo (?:procesar|leer|analizar) (?:s[oó]lo|[uú]nicamente|solamente) texto<end>",
    r"\bpor favor,? (?:sub|adjunt|compart|env[ií]|proporcion|carg)\w+ (?:la|una|tu|su) <image>",
)
_FRENCH: Final = _phrases(
    r"(?:images?|photos?|pièces? jointes?)\b",
    r"jointe|fournie|disponible|incluse|ici|donc|dans (?:cette|ce|la|le|votre|notre|ton)"
    r" (?:conversation|message|discussion|demande|question)",
    r"\b(?:ne (?:vois|reçois|trouve|détecte)|n'(?:ai|y a)) (?:pas|aucune?) (?:reçu )?(?:d'|de |l'|cette |votre )?"
    r"<image><end>",
    r"\b(?:ne peux pas|impossible de|incapable de) (?:voir|accéder à|visualiser|analyser)"
    r" (?:l'|cette |une |d'|les )?<image>",
    r"\bpas (?:en mesure|capable) de (?:voir|visualiser|analyser)(?: ou d'?e? ?\w+)?"
    r" (?:l'|cette |une |d'|les |des )?<image>",
    r"\b(?:pas|aucun) accès (?:à|aux) ?(?:l'|cette |votre |une |la |les )?<image>",
    r"\Aaucune? <image>\W*\Z",
    r"\baucune? <image> (?:n'a (?:pas )?été |n'est |ne m'a été )?(?:fourni|joint|transmis|envoyé|inclu|télé|reçu"
    r"|partagé|disponible|accessible)",
    r"\b<image> (?:n'a|n'est|ne m'a|n'ont) pas (?:été )?(?:fourni|joint|transmis|envoyé|inclu|télé|reçu|partagé"
    r"|disponible|accessible)",
    r"\bne (?:peux|sais) (?:traiter|lire|analyser|comprendre) que (?:du|le|les|des) textes?<end>",
    r"\b(?:peux|sais) (?:uniquement|seulement) (?:traiter|lire|analyser|comprendre) (?:du|le|les|des) textes?<end>",
    r"\bmodèle (?:purement |uniquement )?textuel\b",
    r"\bveuillez (?:joindre|fournir|envoyer|partager|téléverser|télécharger) (?:l'|une |votre |la )<image>",
)
_GERMAN: Final = _phrases(
    r"(?:bild(?:er|es|s|datei)?|fotos?|abbildung(?:en)?)\b",
    r"hier|vor\b|zu sehen|im (?:chat|gespräch|verlauf)|in (?:der|dieser|ihrer|deiner|unserer)"
    r" (?:nachricht|unterhaltung|anfrage|konversation|frage)",
    r"\b(?:sehe|habe|finde|erhielt|bekam)(?: ich)?(?: (?:hier|leider|aktuell|derzeit|aber|auch)){0,2}"
    r" kein(?:e|en|erlei)? (?:angehängte[sn]? |beigefügte[sn]? )?<image><end>",
    r"\b(?:gibt es|ist|liegt)(?: (?:hier|leider|mir)){0,2} kein(?:e|en|erlei)? <image><end>",
    r"\Akein <image>\W*\Z",
    r"\bkein(?:e|en)? bild\w* (?:\w+ )?(?:erhalten|bereitgestellt|angehängt|vorhanden|beigefügt|mitgeschickt"
    r"|hochgeladen|angekommen|gesendet|verfügbar|übermittelt|sehen|ansehen|betrachten|analysieren|anzeigen)",
    r"\bbild(?:er)? (?:\w+ )?nicht (?:sehen|öffnen|ansehen|anzeigen|analysieren)",
    r"\b<image> (?:wurde|ist|war|liegt|sind|wurden) (?:mir )?nicht (?:bereitgestellt|angehängt|beigefügt|übermittelt"
    r"|hochgeladen|mitgeschickt|verfügbar|zugänglich|angekommen|vor\b)",
    r"\bkein(?:en|erlei)? zugriff auf (?:(?:das|die|dieses|ihr|dein|ein) )?<image>",
    r"\bkann (?:nur|ausschließlich|lediglich|bloß) texte? (?:verarbeiten|lesen|verstehen|analysieren)",
    r"\b(?:text-?modell|textbasierte[sr]? (?:ki|modell|sprachmodell|assistent))\b",
    r"\bohne (?:das |ein )?<image> zu (?:sehen|kennen)",
    r"\bbitte (?:laden|lade|senden|sende|schicken|schicke|fügen|füge|teilen|teile|hängen|hänge)"
    r"(?: (?:sie|mir|bitte)){0,2} (?:das|ein|ihr|dein) <image>",
)
_ITALIAN: Final = _phrases(
    r"(?:immagin[ei]|foto(?:grafi[ae])?)\b",
    r"allegat|fornit|disponibil|qui\b|quindi|(?:in|nel|nella) ?(?:quest[ao]|tuo|tua|nostra)?"
    r" ?(?:conversazione|messaggio|chat|richiesta|domanda)",
    r"\bnon (?:vedo|ho|ho ricevuto|trovo|c'è|è presente|rilevo|ricevo) (?:(?:alcuna|nessuna|la)\s|l'|un')?<image><end>",
    r"\bnon (?:posso|riesco a|sono in grado di) (?:vedere|visualizzare|analizzare) (?:l'|(?:le|delle|un')\s?)?<image>",
    r"\bnon (?:mi )?è stata (?:fornit|allegat|inclus|caricat|inviat|condivis)a (?:alcuna |nessuna |l')?<image>",
    r"\Anessuna <image>\W*\Z",
    r"\bnessuna <image> (?:è stata )?(?:fornit|allegat|inclus|caricat|inviat|condivis|ricevut|disponibil)",
    r"\b<image> non (?:è|risulta) (?:stata )?(?:fornit|allegat|inclus|caricat|inviat|condivis|disponibil|accessibil)",
    r"\bnon ho (?:alcun )?accesso (?:all'|alle |a (?:nessuna |questa |un')?)\s?<image>",
    r"\bposso (?:solo|soltanto|solamente) (?:elaborare|leggere|analizzare|comprendere) (?:del |il )?test[oi]<end>",
    r"\bposso (?:elaborare|leggere|analizzare|comprendere) (?:solo|soltanto|solamente) (?:del |il )?test[oi]<end>",
    r"\bmodello (?:solo |puramente )?testuale\b",
)
_PORTUGUESE: Final = _phrases(
    r"(?:image[mn]s?|fotos?|fotografias?)\b",
    r"anexad|fornecid|disponíve|aqui|portanto|ness?[ea] |nest[ea] (?:conversa|mensagem|chat)"
    r"|na (?:sua )?(?:conversa|mens)",
    r"\bnão (?:vejo|recebi|tenho|há|encontro|encontrei|existe) (?:(?:nenhuma|a|uma|qualquer) )?<image><end>",
    r"\bnão (?:consigo|posso|sou capaz de) (?:ver|visualizar|analisar|acessar)(?: \w+mente)?"
    r" (?:(?:a|as|uma|nenhuma) )?<image>",
    r"\bnão foi (?:fornecid|anexad|enviad|incluíd|carregad)a (?:nenhuma |a |uma )?<image>",
    r"\Anenhuma <image>\W*\Z",
    r"\bnenhuma <image> (?:foi |está )?(?:fornecid|anexad|enviad|incluíd|carregad|recebid|disponíve)",
    r"\b<image> não (?:foi|está) (?:fornecid|anexad|enviad|incluíd|carregad|recebid|disponíve|acessíve)",
    r"\b(?:não tenho|sem) acesso (?:à|às|a) (?:(?:essa|esta|nenhuma|sua|uma) )?<image>",
    r"\b(?:só|apenas|somente) (?:consigo|posso) (?:processar|ler|analisar|entender) textos?<end>",
    r"\b(?:consigo|posso) (?:apenas|somente) (?:processar|ler|analisar|entender) textos?<end>",
)
_DUTCH: Final = _phrases(
    r"(?:afbeelding(?:en)?|foto(?:'s)?|plaatjes?)\b",
    r"hier|dus|bijgevoegd|(?:in|bij) (?:dit|uw|je|deze|ons|het) (?:bericht|gesprek|chat|vraag|verzoek)",
    r"\b(?:zie|vind|heb|ontving)(?: ik)?(?: (?:hier|helaas)){0,2} geen (?:bijgevoegde )?<image><end>",
    r"\bzie (?:de|uw|je|deze) <image> niet\b",
    r"\bkan (?:de |het |deze )?(?:geen <image>(?: \w+)?|<image>(?: \w+)? niet) (?:zien|bekijken|openen)",
    r"\ber is(?: helaas)? geen <image><end>",
    r"\Ageen <image>\W*\Z",
    r"\bgeen <image> (?:\w+ )?(?:bijgevoegd|meegestuurd|ontvangen|beschikbaar|aangeleverd|verstrekt|geüpload"
    r"|toegevoegd|meegeleverd|gedeeld)",
    r"\b<image> (?:is|was|werd|zijn) niet (?:bijgevoegd|meegestuurd|ontvangen|beschikbaar|aangeleverd|verstrekt"
    r"|geüpload|toegevoegd|meegeleverd|gedeeld|toegankelijk)",
    r"\bgeen toegang tot (?:(?:de|een|deze|uw|je) )?<image>",
    r"\bkan alleen (?:maar )?tekst(?:en)? (?:verwerken|lezen|begrijpen|analyseren)",
)
_POLISH: Final = _phrases(
    r"(?:obraz(?:u|ów|y|ka|ek|ki)?|zdję(?:cia|cie|ć)|grafik[iaę])\b",
    r"tutaj|więc|w (?:tej |twojej |naszej )?(?:rozmowie|wiadomości|konwersacji)|do (?:wiadomości|rozmowy)",
    r"\bnie (?:widzę|otrzymał[ae]m|dostał[ae]m|mam|ma|znajduję)(?: (?:tu|tutaj|żadnego|tego|załączonego)){0,2}"
    r" <image><end>",
    r"\bnie (?:mogę|jestem w stanie|potrafię) (?:zobaczyć|obejrzeć|wyświetlić|przeanalizować|analizować|widzieć)"
    r" (?:(?:żadnego|tego) )?<image>",
    r"\bnie (?:załączono|dołączono|przesłano|dostarczono|podano|udostępniono) (?:mi )?(?:żadnego )?<image>",
    r"\b<image> nie (?:został[oy]?|jest|są) (?:mi )?(?:załączon|dołączon|przesłan|dostarczon|udostępnion|dostępn)",
    r"\Abrak <image>\W*\Z",
    r"\b(?:nie mam|brak) dostępu do (?:\w+ )?<image>",
    r"\bmogę (?:tylko|jedynie|wyłącznie) (?:przetwarzać|czytać|odczytywać|analizować) tekst\w*<end>",
    r"\bmogę (?:przetwarzać|czytać|odczytywać|analizować) (?:tylko|jedynie|wyłącznie) tekst\w*<end>",
)
_RUSSIAN: Final = _phrases(
    r"(?:изображени[еяйю]м?|картин(?:к[иуа]|ок)|фотографи[июя]?|фото)\b",
    r"здесь|тут|поэтому|в (?:этом |вашем |нашем )?(?:сообщении|чате|запросе|разговоре|диалоге)",
    r"\bне (?:вижу|получил[аи]?|нахожу|обнаружил[аи]?)"
    r"(?: (?:здесь|никак\w+|ваш\w+|прикрепл\w+|приложен\w+|эт\w+|само)){0,2} <image><end>",
    r"\bне (?:могу|способен|способна)(?: (?!на\b|в\b|с\b|у\b)\w+){0,2} <image>",
    r"\b<image> не (?:был[аои]? )?(?:предоставлен|прикрепл[её]н|загружен|приложен|отправлен|получен|доступн|передан)",
    r"\bне (?:был[аои]? )?(?:предоставлен|прикрепл[её]н|загружен|приложен)\w* (?:никак\w+ )?<image>",
    r"\bнет доступа к (?:\w+ )?(?:изображени|картинк|фотографи|фото)",
    r"(?:\A|[.!;:,] |\b(?:здесь|тут|у меня|сообщении|чате|запросе) )нет (?:никак\w+ )?<image><end>",
    r"\b<image> (?:отсутству\w+|недоступн\w+)",
    r"\b(?:могу|умею|способ\w+) (?:обрабатывать|читать|анализировать|понимать) (?:только|лишь) текст\w*<end>",
    r"\b(?:только|лишь) (?:обрабатывать|читать|анализировать|понимать) текст\w*<end>",
    r"\bтекстов(?:ая|ой) (?:языков(?:ая|ой) )?модел",
)
_TURKISH: Final = (
    r"\b(?:görsel(?:i|leri|inizi)|res(?:mi|imleri|minizi)|fotoğraf(?:ı|ları|ınızı))(?: (?:doğrudan|maalesef))?"
    r" (?:göremiyorum|görmüyorum|görüntüleyemiyorum|açamıyorum|inceleyemiyorum|analiz edemiyorum|işleyemiyorum)"
    r"|(?:\A|[.!,;:] )(?:burada |mesajınızda |maalesef )?(?:herhangi bir |hiçbir |bir |ekli ){0,2}"
    r"(?:görsel|resim|fotoğraf)"
    r" (?:göremiyorum|görmüyorum|almadım|yok)\b"
    r"|\b(?:görsel|resim|fotoğraf) (?:yükle|ekle|sağla|gönderil|paylaşıl|veril|iletil)n?(?:medi|madı|memiş|mamış)"
    r"|\b(?:görsel|resim|resm|fotoğraf)(?:e|a|lere|lara) (?:eriş|ulaş)(?:imim yok|emiyorum|amıyorum)"
    r"|\b(?:yalnızca|sadece) metin(?:leri)? (?:işleyebil|okuyabil|anlayabil|analiz edebil)"
    r"|\bmetin tabanlı (?:bir )?(?:yapay zek|model|dil model)"
)
_CHINESE: Final = (
    r"(?<![上里裡中])(?:[无無]法|不能|看不[到见見]|[没沒]有|[没沒]|未|并未)(?:直接|能够|能|被)?"
    r"(?:看到|看[见見]|查看|[访訪][问問]|[读讀]取|分析|[识識][别別]|收到|提供|上[传傳]|附上|附加|[获獲]取|[检檢][测測]到|[发發][现現])?"
    r"(?:到|任何|您|你|的|[该該]|[这這][张張]|[这這][个個]|此|[实實][际際]|提供|上[传傳])*(?:[图圖]片|[图圖]像|照片)(?![中里裡上])"
    r"|(?:[图圖]片|[图圖]像|照片)(?:[没沒]有|未|[并並]未)(?:被)?(?:提供|上[传傳]|附上|[显顯]示(?!\w)|附加|包含)"
    r"|(?:[图圖]片|[图圖]像|照片)(?:内容)?(?:[无無]法|未能|不能)(?:加[载載]|[显顯]示|[访訪][问問]|[读讀]取|打[开開]|查看)"
    r"|我(?:是一[个個])?[^。,，]{0,6}?(?:只|[仅僅])(?:能|支持)?(?:[处處]理|[读讀]取|[阅閱][读讀]|[读讀]|理解|接收)(?:[纯純])?文[本字](?![上中])"
    r"|[纯純]?文本(?:[语語]言)?模型|[没沒]有(?:[视視][觉覺]|[图圖]像[处處]理|看[图圖])(?:能力|功能)"
    r"|[请請](?:您|你)?(?:重新)?(?:上[传傳]|提供|[发發]送|附上)(?:您的|你的|一[张張]|[该該]|[这這][张張])?(?:[图圖]片|[图圖]像|照片)"
)
_JAPANESE: Final = (
    r"(?:画像|写真)を?(?:直接)?(?:は|が)?(?:見る|閲覧|表示|分析|確認|認識)(?:する)?(?:ことが|ことは)?(?:でき(?:ません|ない)|見えません)"
    r"|(?<![にはで])(?:画像|写真)(?:が|は|も)(?:見えません|見えない|ありません|ございません|見当たりません)"
    r"|(?:画像|写真)(?:が|は|も)?(?:添付され|提供され|アップロードされ|送信され|共有され|含まれ|送られ|届い)"
    r"(?:て(?:い|おり)(?:ません|ない)|ませんでした|てない)"
    r"|(?:画像|写真)に(?:は)?アクセスでき(?:ません|ない)|(?:画像|写真)への?アクセス(?:権)?が(?:ない|ありません)"
    r"|テキスト(?:のみ|だけ|しか)(?:を)?(?:処理|読|扱|理解|認識)|テキスト(?:ベース|専用|のみ)の(?:ai|モデル|言語モデル)"
)
_KOREAN: Final = (
    r"(?:이미지|사진)[를을가이는은]? ?(?:직접 )?(?:볼|확인할|분석할|열|인식할) ?수(?:가)? ?없"
    r"|(?:이미지|사진)[가이는은]? ?(?:첨부|제공|업로드|포함|전달|전송)(?:되지 ?않|되어 있지 ?않|돼 있지 ?않|된 것이 없)"
    r"|(?:\A|[.!,] ?)이미지[가는]? ?(?:없[습어네]|보이지 ?않)"
    r"|(?:첨부|제공|업로드)된 (?:이미지|사진)[가이는은]? ?(?:없|보이지 ?않)"
    r"|(?:이미지|사진)에 ?(?:대한 )?(?:접근|액세스)(?:할 수 ?없| ?권한이 없|이 불가)"
    r"|(?:이미지|사진)[를을] (?:받지|보지) ?못"
    r"|텍스트만 (?:처리|읽|이해|분석)|텍스트 (?:기반|전용) (?:ai|모델|언어)"
)

IN_OTHER_LANGUAGES: Final = "|".join(
    (
        *(_SPANISH, _FRENCH, _GERMAN, _ITALIAN, _PORTUGUESE, _DUTCH, _POLISH, _RUSSIAN),
        *(_TURKISH, _CHINESE, _JAPANESE, _KOREAN),
    )
)
"""Matches, in plain words, that a model sees no image or reads text alone."""
