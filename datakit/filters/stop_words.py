"""The commonest small words of some languages: a page of prose has at least two of them (Gopher, arXiv 2112.11446, A.1.1).

The English ones are Gopher's. The others are articles, conjunctions, prepositions and forms of "to be", which every prose has.
"""

from __future__ import annotations

STOP_WORDS: dict[str, tuple[str, ...]] = {
    language: tuple(words.split())
    for language, words in {
        "en": "the be to of and that have with",
        "de": "der die das und ist nicht mit von ein eine zu den in auf für",
        "fr": "le la les de des et est un une que en pour dans du qui",
        "es": "el la los de que y en un una es por con para del las",
        "it": "il la di che e è un una per con non del della in sono",
        "pt": "o a os de que e em um uma para com não do da por",
        "nl": "de het een en van is niet met dat op te voor in zijn",
        "sv": "och att det som en ett är av för på med inte den till",
        "da": "og at det som en et er af for på med ikke den til",
        "no": "og at det som en et er av for på med ikke den til",
        "nb": "og at det som en et er av for på med ikke den til",
        "nn": "og at det som ein eit er av for på med ikkje den til",
        "fi": "ja on ei että se hän oli ovat mutta kun niin kuin myös tai",
        "pl": "i w na z nie się że jest do to o jak po od",
        "cs": "a v na se že je to s z do i o jako pro",
        "sk": "a v na sa že je to s z do aj o ako pre",
        "ru": "и в на не что с по это как из к для от",
        "uk": "і в на не що з по це як до та для від",
        "bg": "и в на не че с за се от да е са по",
        "hr": "i u na je se da za su od s koji kao ne",
        "ro": "și în de la cu pe că este un o nu din care pentru",
        "hu": "a az és hogy nem is egy van de meg ez volt",
        "tr": "ve bir bu da de için ile çok daha olarak gibi olan",
        "el": "και το να του η της με για από που ο στο",
        "id": "yang dan di ini itu dengan untuk dari dalam tidak pada ke",
        "ca": "el la de que i en un una és per amb els les del",
    }.items()
}
