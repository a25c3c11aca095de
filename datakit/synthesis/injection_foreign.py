"""How other languages say "ignore the instructions above" and "answer only with"."""

# ruff: noqa: E501 - a pattern stands on one line
from __future__ import annotations

import re

from datakit.synthesis.injection_english import rule
from datakit.synthesis.injection_forms import folded


def _pair(first: str, second: str, gap: int) -> str:
    return rf"(?:{first})[^.!?\n。！？]{{0,{gap}}}?(?:{second})"


# A verb, and what it is about: what was said before, or all that was said. "Follow the instructions" alone is no override.
_OVERRIDES = {
    "de": _pair(
        r"\b(?:ignorier\w*|missacht\w*|vergiss|vergessen sie|vergesst|verwirf|überspring\w*|überlies|übergeh\w*)\b",
        r"\b(?:(?:vor(?:her|an|ig|ausg)|bisher|obig|früher|ursprünglich|deine?|ihre?|alle|system)\w* (?:\w+ )?"
        r"(?:anweisung|instruktion|vorgabe|befehl|aufforderung|regel|anleitung|aufgabe|text|eingabe|prompt)\w*"
        r"|system-?prompt|alles (?:bisherige|vorherige|obige|davor|vorangegangene|was (?:davor|oben|vorher|bisher))"
        r"|das (?:obige|vorherige|vorangegangene)|was (?:oben|davor|vorher) (?:steht|stand|gesagt))\b",
        40,
    ),
    "de negated": _pair(
        r"\b(?:beachte|befolge|folge|berücksichtige)\w*\b",
        r"\b(?:vorherige|bisherige|obige|frühere)\w* (?:\w+ )?(?:anweisung|vorgabe|regel)\w* (?:nicht|keinesfalls)",
        30,
    ),
    "fr": _pair(
        r"\b(?:ignore[rz]?|oublie[rz]?|neglige[rz]?|ne (?:tiens|tenez) (?:pas|aucun|plus) compte|fais abstraction"
        r"|faites abstraction|ne (?:suis|suivez|respecte[rz]?) (?:pas|plus)|passe[rz]? outre)\b",
        r"\b(?:(?:instruction|consigne|directive|ordre|règle|demande|message|texte|prompt)s? (?:\w+ ){0,2}"
        r"(?:précédent|antérieur|ci-dessus|plus haut|initial|d'avant|système|reçu)\w*"
        r"|tou(?:te)?s (?:les|tes|vos) (?:instruction|consigne|directive|ordre|règle)s?"
        r"|(?:tes|vos) (?:instruction|consigne|directive)s|(?:tout )?ce qui précède|prompt système)",
        40,
    ),
    "es": _pair(
        r"\b(?:ignora|ignore|ignorad|ignoren|ignorar|olvida|olvide|olvidad|olvidate|olvidese|descarta|descarte|omite|omita"
        r"|haz caso omiso|haga caso omiso|hagan caso omiso|no (?:sigas|hagas caso|siga|haga caso|obedezcas)|desobedece|desestima)\b",
        r"\b(?:(?:instruccion|indicacion|orden|directri[zc]|regla|mensaje|texto|petición|prompt)(?:es|s)? (?:\w+ ){0,2}"
        r"(?:anterior|previa|previo|precedente|de arriba|inicial|original|que (?:te|has|recib))\w*"
        r"|tod[ao]s (?:las|los|tus|sus) (?:\w+ )?(?:instrucciones|indicaciones|ordenes|directrices|reglas)"
        r"|tus (?:instrucciones|directrices|reglas)|(?:todo )?lo (?:anterior|de arriba|que precede|previo))\b",
        40,
    ),
    "it": _pair(
        r"\b(?:ignora|ignori|ignorate|ignorare|dimentica|dimentichi|dimenticate|trascura|tralascia|scarta|non (?:seguire|tenere conto|considerare))\b",
        r"\b(?:(?:istruzion|indicazion|direttiv|ordin|comand|regol|messagg|test|richiest|prompt)\w* (?:\w+ ){0,2}"
        r"(?:precedent|di cui sopra|sopra|iniziali|ricevut|original)\w*"
        r"|(?:precedenti|tutte le|tutti gli|le tue) (?:\w+ )?(?:istruzioni|indicazioni|direttive|ordini|regole)"
        r"|(?:tutto )?(?:quanto|ciò che) (?:\w+ )?(?:sopra|precede|detto)|tutto (?:ciò|quello) che (?:precede|viene prima|è stato detto))",
        40,
    ),
    "pt": _pair(
        r"\b(?:ignore|ignora|ignorem|ignorar|esqueça|esqueca|esquece|esqueçam|desconsidere|desconsidera|desconsiderem|descarte|desrespeite|não siga)\b",
        r"\b(?:(?:instruç(?:ão|ões)|orde(?:m|ns)|diretri(?:z|zes)|comandos?|regras?|mensage(?:m|ns)|textos?|indicaç(?:ão|ões)|prompts?) "
        r"(?:\w+ ){0,2}(?:anterior|prévi|acima|precedente|inicia|origina|recebid)\w*"
        r"|tod[ao]s (?:as|os) (?:suas |seus )?(?:instruções|ordens|diretrizes|regras)|suas (?:instruções|diretrizes)"
        r"|tudo (?:o que (?:\w+ )?(?:acima|antes|dito|precede)|acima|anterior)|o que (?:está|foi dito|vem) (?:acima|antes))",
        40,
    ),
    "nl": _pair(
        r"\b(?:negeer|vergeet|volg niet|sla)\b",
        r"\b(?:(?:vorige|voorgaande|bovenstaande|eerdere|alle|jouw|je) (?:\w+ ){0,2}(?:instructie|opdracht|aanwijzing|regel|tekst|bericht)\w*"
        r"|(?:al )?het (?:bovenstaande|voorgaande)|alles hierboven|systeemprompt)",
        30,
    ),
    "sv da no": _pair(
        r"\b(?:ignorer|ignorera|glem|glöm|bortse från|se bort fra|strunta i)\b",
        r"\b(?:(?:tidigare|tidligere|föregående|foregående|forrige|alla|alle|ovanstående|ovenstående|ovenfor) (?:\w+ ){0,2}"
        r"(?:instruktion|instruks|anvisning|regler|ordre|beskjed)\w*|(?:allt|alt|det) (?:ovanstående|ovenstående|ovan|ovenfor))",
        30,
    ),
    "pl": _pair(
        r"\b(?:zignoruj|ignoruj|zapomnij|pomiń|odrzuć|nie stosuj się)\w*\b",
        r"\b(?:(?:poprzedni|wcześniejsz|powyższ|wszystki|dotychczasow)\w* (?:\w+ ){0,2}(?:instrukcj|polece|wytyczn|rozkaz|zasad|tekst)\w*"
        r"|wszystko (?:powyżej|co powyżej)|(?:instrukcj|polece)\w* (?:powyżej|systemow)\w*)",
        40,
    ),
    "cs sk": _pair(
        r"\b(?:ignoruj|ignorujte|zapomeň|zapomeňte|zabudni|zabudnite)\b",
        r"\b(?:předchoz|predchádz|výše|vyššie|všechn|všetk|dosavadn)\w* (?:\w+ ){0,2}(?:instrukc|inštrukc|pokyn|příkaz|príkaz|pravid)\w*",
        30,
    ),
    "ru uk": _pair(
        r"\b(?:про)?(?:игнорируй|ігноруй|игнорировать|ігнорувати)\w*\b|\b(?:забудь|забудьте|отмени|отмените|отбрось|пренебреги)\b"
        r"|\bне (?:обращай\w*|зважай\w*) (?:внимания )?на\b|\bне (?:следуй|выполняй)\w*\b",
        r"\b(?:предыдущ|прежн|прошл|предшеств|вышеуказ|выше ?приведен|попередн|все|всі|свои|системн|начальн)\w* (?:\w+ ){0,2}"
        r"(?:инструкц|указани|команд|правил|приказ|распоряж|текст|сообщен|промпт|інструкц|вказівк)\w*"
        r"|\b(?:инструкц|указани|команд|правил|інструкц|вказівк)\w* (?:\w+ ){0,2}(?:выше|вище|ранее|раніше)\b"
        r"|\bвсе,? (?:что|що) (?:\w+ ){0,3}(?:выше|раньше|ранее|до этого|сказано|написано|вище)|\bвыше(?:изложенн|сказанн|написанн|перечислен)\w*",
        40,
    ),
    "el": _pair(r"\b(?:αγνόησ|ξέχασ|παράβλεψ)\w*", r"(?:προηγούμεν|παραπάνω|όλες)\w* (?:\w+ ){0,2}(?:οδηγί|εντολ|κανόν)\w*", 40),
    "tr": _pair(
        r"\b(?:önceki|yukarıdaki|tüm|bütün|verilen)\b",
        r"\b(?:talimat|komut|yönerge|kural|istem)\w* (?:\w+ ){0,2}?(?:yok say|unut|göz ardı|görmezden|dikkate alma|boş ver)\w*",
        40,
    ),
    "id ms": _pair(
        r"\b(?:abaikan|lupakan|jangan ikuti|jangan pedulikan)\b",
        r"\b(?:instruksi|perintah|petunjuk|arahan|aturan|teks)\b[^.\n]{0,20}\b(?:sebelumnya|di atas|terdahulu)\b|\bsemua (?:instruksi|perintah|arahan|petunjuk)\b",
        30,
    ),
    "vi": _pair(
        r"\b(?:bỏ qua|phớt lờ|quên|lờ đi|không tuân theo)\b",
        r"\b(?:hướng dẫn|chỉ thị|lệnh|chỉ dẫn|yêu cầu|quy tắc)\b[^.\n]{0,20}(?:trước|ở trên|phía trên|bên trên)",
        30,
    ),
    "zh": _pair(
        r"忽略|无视|無視|忘记|忘記|忘掉|忽視|忽视|不要理会|不要理會|别管|別管|不理会|抛开|拋開|不用管|不要遵守|不要遵循",
        r"(?:之前|以上|上面|上述|先前|前面|此前|系统|系統|原有|前述|所有|一切|全部|你的|您的)[^。！？\n]{0,10}?"
        r"(?:指令|指示|说明|說明|提示|命令|要求|规则|規則|内容|內容|对话|對話|文字|文本|话|話)",
        8,
    ),
    "ja": _pair(
        r"以前|これまで|上記|前の|先ほど|今まで|すべて|全て|直前|上の|元の|あらゆる|与えられた",
        r"(?:指示|命令|プロンプト|ルール|指令|文章|内容|説明)(?:を|は|について)?[^。！？\n]{0,8}?(?:無視|忘れ|従わな|破棄|取り消|考慮し?ない)",
        12,
    ),
    "ko": _pair(
        r"이전|위의|앞의|지금까지|모든|기존|상기|앞선",
        r"(?:지시|명령|프롬프트|지침|내용|규칙|안내)[^.\n]{0,8}?(?:무시|잊|따르지|취소)",
        14,
    ),
    "ar": _pair(
        r"تجاهل|انس |انسى|لا تتبع|أهمل",
        r"(?:التعليمات|الأوامر|القواعد|الإرشادات|تعليمات)[^.\n]{0,20}(?:السابقة|أعلاه|السابق)|جميع (?:التعليمات|الأوامر)|كل ما سبق|ما سبق",
        30,
    ),
    "he": _pair(r"התעלם|תתעלם|התעלמי|שכח", r"(?:ההוראות|הוראות|הנחיות|ההנחיות)[^.\n]{0,20}(?:הקודמות|לעיל|למעלה)|כל ההוראות", 30),
    "fa": _pair(r"(?:دستور|راهنما|فرمان)\w*", r"(?:قبلی|بالا|پیشین)[^.\n]{0,15}(?:نادیده|فراموش)", 15),
    "hi": _pair(
        r"(?:पिछले|पिछली|ऊपर|पूर्व|सभी|उपरोक्त)",
        r"(?:निर्देश|आदेश|नियम|हिदायत)[^।\n]{0,15}?(?:अनदेखा|अनदेखी|नजरअंदाज|नज़रअंदाज़|भूल|उपेक्षा)",
        20,
    ),
    "th": _pair(r"เพิกเฉย|ไม่ต้องสนใจ|อย่าสนใจ|ลืม|ละเว้น", r"(?:คำสั่ง|คำแนะนำ|ข้อความ)[^\n]{0,20}(?:ก่อนหน้า|ข้างต้น|ทั้งหมด)", 10),
}
# "Answer only with": an imperative, and a word for "only".
_FORMATS = {
    "answer de": r"\b(?:antworte|antworten sie|schreibe?|schreiben sie|gib|geben sie)\b[^.\n]{0,12}\b(?:nur|ausschließlich|lediglich) (?:noch |mit |auf |in |das wort |den satz )",
    "answer fr": r"\b(?:réponds|répondez|écris|écrivez|affiche[z]?)\b[^.\n]{0,12}\b(?:uniquement|seulement|exclusivement|simplement) (?:par|avec|en|le mot|la phrase)\b",
    "answer es": r"\b(?:responde|responda|contesta|conteste|escribe|escriba)\b[^.\n]{0,12}\b(?:solo|sólo|solamente|únicamente|exclusivamente) (?:con|en|la palabra|la frase)\b",
    "answer it": r"\b(?:rispondi|risponda|rispondete|scrivi|scriva)\b[^.\n]{0,12}\b(?:solo|solamente|soltanto|unicamente|esclusivamente) (?:con|in|la parola|la frase)\b",
    "answer pt": r"\b(?:responda|responde|escreva|escreve)\b[^.\n]{0,12}\b(?:apenas|somente|só|unicamente|exclusivamente) (?:com|em|a palavra|a frase)\b",
    "answer nl": r"\b(?:antwoord|schrijf)\b[^.\n]{0,12}\b(?:alleen|uitsluitend|enkel) (?:nog )?(?:met|in|het woord|de zin)\b",
    "answer ru": r"\b(?:отвечай|отвечайте|ответь|ответьте|напиши|напишите|выведи|выведите)\b[^.\n]{0,12}\b(?:только|лишь|исключительно)\b",
    "answer pl": r"\b(?:odpowiedz|odpowiadaj|napisz)\b[^.\n]{0,12}\b(?:tylko|wyłącznie|jedynie)\b",
    "answer zh": r"(?:只|仅|僅)(?:能|需|要|可|以)?(?:回答|输出|輸出|回复|回覆|写|打印)|(?:回答|输出|輸出|回复|回覆)时?(?:只|仅|僅)(?:用|能用|写|輸出)",
    "answer ja": r"(?:とだけ|のみを?|だけを?)(?:答え|回答し|返答し|返し|出力し|書い|書き)(?:て(?:ください|下さい)|なさい|ろ|よ)",
    "answer ko": r"(?:라고만|로만|만) ?(?:대답|답변|출력|응답)(?:하세요|하라|해라|해|하십시오)",
}


# The words that each of them needs, as in datakit.synthesis.injection_english.
_NEEDED = {
    "de": "ignorier|missacht|vergiss|vergess|verwirf|überspring|überlies|übergeh",
    "de negated": "anweisung|vorgabe|regel & nicht|keinesfalls & folge|beachte|berücksichtige",
    "fr": "ignore|oublie|neglige|compte|abstraction|ne suis|ne suivez|respecte|outre & précéd|antérieur|ci-dessus|plus haut|initial|d'avant|système|reçu|tous|toutes|tes |vos ",
    "es": "ignor|olvid|descart|omit|caso|sigas|siga|obede|desestim & instrucc|indicac|orden|directri|regla|mensaje|texto|petición|prompt|anterior|arriba|precede|previo",
    "it": "ignor|dimentic|trascura|tralascia|scarta|non & istruzion|indicazion|direttiv|ordin|comand|regol|messagg|test|richiest|prompt|sopra|precede|prima|detto",
    "pt": "ignor|esque|desconsider|descart|desrespeit|siga & instruç|ordem|ordens|diretri|comando|regra|mensage|texto|indicaç|prompt|acima|antes|dito|precede|anterior",
    "nl": "negeer|vergeet|volg niet|sla ",
    "sv da no": "ignorer|glem|glöm|bortse|se bort|strunta",
    "pl": "ignoruj|zapomnij|pomiń|odrzuć|nie stosuj",
    "cs sk": "ignoruj|zapomeň|zabudni",
    "ru uk": "игнорир|ігнор|забуд|отмени|отброс|пренебреги|обращай|зважай|следуй|выполняй",
    "el": "αγνόησ|ξέχασ|παράβλεψ",
    "tr": "yok say|unut|göz ardı|görmezden|dikkate|boş ver",
    "id ms": "abaikan|lupakan|jangan",
    "vi": "bỏ qua|phớt lờ|quên|lờ đi|tuân theo",
    "zh": "忽略|无视|無視|忘记|忘記|忘掉|忽視|忽视|理会|别管|別管|抛开|拋開|不用管|不要遵",
    "ja": "無視|忘れ|従わな|破棄|取り消|考慮",
    "ko": "무시|잊|따르지|취소",
    "ar": "تجاهل|انس|لا تتبع|أهمل",
    "he": "תעלם|שכח",
    "fa": "نادیده|فراموش",
    "hi": "अनदेखा|अनदेखी|नजरअंदाज|नज़रअंदाज़|भूल|उपेक्षा",
    "th": "เพิกเฉย|สนใจ|ลืม|ละเว้น",
    "answer de": "antworte|schreib|gib|geben & nur|ausschließlich|lediglich",
    "answer fr": "répond|écri|affiche & uniquement|seulement|exclusivement|simplement",
    "answer es": "respond|contest|escrib & solo|sólo|solamente|únicamente|exclusivamente",
    "answer it": "rispond|scriv & solo|solamente|soltanto|unicamente|esclusivamente",
    "answer pt": "respond|escrev & apenas|somente|só|unicamente|exclusivamente",
    "answer nl": "antwoord|schrijf & alleen|uitsluitend|enkel",
    "answer ru": "отвечай|ответь|напиши|выведи",
    "answer pl": "odpowi|napisz & tylko|wyłącznie|jedynie",
    "answer zh": "只|仅|僅",
    "answer ja": "だけ|のみ",
    "answer ko": "만 |만대|만답|만출|만응|로만|라고만",
}


def _folded(pattern: str) -> str:
    """The pattern as it matches folded texts. It is written in small letters, so what is ASCII stays."""
    return re.sub(r"[^\x00-\x7f]+", lambda match: folded(match.group()), pattern)


RULES = tuple(
    rule(_folded(_NEEDED[language]), _folded(pattern))
    for patterns in (_OVERRIDES, _FORMATS)
    for language, pattern in patterns.items()
)
