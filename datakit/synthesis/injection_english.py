"""What an attack says in English, and the words without which it is none."""

# ruff: noqa: E501 - a pattern stands on one line
from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """A pattern, and the words without which it cannot match: one of each group. Looking for words is a hundred times faster."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    pattern: re.Pattern[str]

    def search(self, text: str, known: dict[str, bool]) -> re.Match[str] | None:
        """The first match. `known` is for all rules that look at this text: which groups have a word in it."""
        for name, words in self.groups:
            if name not in known:
                known[name] = any(map(text.__contains__, words))
            if not known[name]:
                return None
        return self.pattern.search(text)


_WORDS = {
    "{aside}": "ignor|never mind|disregard|forget|overlook|attention|heed|aside|follow|obey|comply|listen|adhere|carry out|act on",
    "{undo}": "overr|overwr|discard|dismiss|bypass|skip|abandon|drop|cancel|revoke|unlearn|erase|delete|void|throw|replace|neglect",
    "{orders}": "instruction|prompt|direction|directive|guideline|order|guidance|programming|training|brief|system message",
    "{loose}": "command|rule|request|task|conversation|assignment|constraint|restriction|polic|context|message|question|text|content",
    "{models}": " ai|a.i.|llm|language model|chatbot|gpt|claude|gemini|copilot|generative model|assistant|automated",
    "{formats}": "json|xml|yaml|html|markdown|csv|sql|base64|rot13|morse|binary|hexadecimal|latex|latin|leetspeak|emoji|all caps|upper"
    "|capital|rhyme|haiku|verse|klingon|pirate|french|german|spanish|chinese|japanese|russian|italian|portuguese|korean|arabic|hindi"
    "|dutch|polish|turkish",
}


def rule(groups: str, pattern: str) -> Rule:
    """`groups` are separated by " & ", and the words of one by "|"."""
    for name, words in _WORDS.items():
        groups = groups.replace(name, words)
    return Rule(tuple((group, tuple(group.split("|"))) for group in groups.split(" & ")), re.compile(pattern))


# What instructions are called. The second group has words that documents use of other things too.
_ORDERS = (
    r"(?:instruction|prompt|direction|directive|guideline|order|guidance|programming|training|brief(?:ing)?|system message)s?"
)
_LOOSE = r"(?:command|rule|request|task|conversation|assignment|constraint|restriction|polic(?:y|ie)|context|message|question|text|content)s?"
_PUT_ASIDE = (
    r"(?:ignore|ignoring|disregard(?:ing)?|forget|overlook|never mind|pay no (?:attention|heed|mind) to|set aside|put aside|leave aside"
    r"|(?:do not|don't|never|stop|cease|no need to|you need not) (?:follow|following|obey|obeying|comply with|complying with"
    r"|listen to|listening to|heed|heeding|adhere to|carry out|act on|pay (?:any )?attention to))"
)
_UNDO = r"(?:override|overwrite|overrule|discard|dismiss|bypass|skip|abandon|drop|cancel|revoke|unlearn|erase|delete|void|throw (?:away|out)|replace|neglect)"
_MUCH = (
    r"(?:(?:all|any|every|each|of|the|these|those|this|that|your|my|our|and|or|both|completely|entirely|totally|absolutely|please"
    r"|everything|anything|whatever|about|in|other|such) ){0,6}"
)
_BEFORE = r"(?:previous(?:ly)?|prior|above|preceding|earlier|foregoing|former|original|initial|existing|past|system|developer|hidden|given|aforementioned)"
_NOW = r"(?:[.,;!:]|and|then|instead|now|but|because|completely|entirely|altogether|$)"
_MODELS = (
    r"(?:ais?|a\.i\.|llms?|(?:large )?language models?|chatbots?|ai (?:assistant|model|system|agent|annotator|tool)s?|chatgpt|gpt"
    r"|claude|gemini|copilot|generative models?|virtual assistants?|automated (?:reader|system|agent|annotator)s?)"
)
_NO_TRADE = (
    r"(?! (?:research|develop|engineer|scien|expert|start|compan|vendor|provider|enthusiast|user|and|or|team|safety|in\b))"
)
_ASKED = r"(?:questions?|quer(?:y|ies))"
_SAID = rf"(?:{_ASKED}|answers?|responses?|repl(?:y|ies)|outputs?)"
_SAY = r"(?:output|print|write|return|say|emit|produce|generate|type|state|give|provide|display|echo|answer|respond|reply)"
_FORMATS = (
    r"(?:(?:valid |raw |plain |strict )?(?:json|xml|yaml|html|markdown|csv|sql|base64|rot13|morse(?: code)?|binary|hexadecimal|latex)"
    r"|pig latin|leetspeak|emojis?|all caps|upper ?case|capital letters|rhymes?|haikus?|verse|klingon|pirate(?: speak)?|reverse"
    r"|latin|french|german|spanish|chinese|japanese|russian|italian|portuguese|korean|arabic|hindi|dutch|polish|turkish)"
)

OVERRIDE = (
    rule("{aside} & {orders}", rf"\b{_PUT_ASIDE} {_MUCH}(?:{_BEFORE} ){{1,3}}(?:\w+ ){{0,2}}?{_ORDERS}\b"),
    rule(
        "{aside} & {loose}",
        rf"(?:^|[.,;:!?\n] ?|\b(?:please|now|must|should|you|to|and|then|just|simply) ){_PUT_ASIDE} {_MUCH}"
        rf"(?:{_BEFORE} )+(?:\w+ )?{_LOOSE}(?= ?{_NOW})",
    ),
    rule(
        "{aside} & {orders}",
        rf"\b{_PUT_ASIDE} (?:all (?:of )?|any )?(?:your|my|our|these|those|the) (?:\w+ )?{_ORDERS}(?= ?(?:above|before|so far|at the (?:top|start|beginning)|you (?:were|have)|that (?:were|came|you)"
        r"|given|and (?:instead|write|output|say|print|respond|reply|answer)))",
    ),
    rule(
        "{aside} & instruction|prompt|directive|guideline",
        rf"\b{_PUT_ASIDE} (?:all|any|every) (?:\w+ )?(?:instruction|prompt|directive|guideline)s?\b",
    ),
    rule(
        "{aside} & everything|anything|all |whatever|what & above|preceding|so far|up to|until|prior|before|come|came|stands|goes|was|is|has|have|preced|you|i |i'|asked|asks|said|says|told|tells|wrote|want",
        rf"\b{_PUT_ASIDE} (?:absolutely |literally )?(?:everything|anything|all|whatever|what)(?: else)?(?: (?:that|which|text|content|written|stated|said|you see|you read|i said))? "
        r"(?:above|preceding|so far|up to (?:here|now|this point)|until (?:now|here|this point)|prior to this|before (?:this|now|here)"
        r"|(?:came|comes|stands|goes|was|is|has been|have been|precedes|preceded|preceding) (?:above|before|this|it|said|written|told|stated|asked|here|so far|earlier|previously)"
        r"|the (?:user|system|operator|developer|prompt|human)s? (?:has |have )?(?:asked|asks|said|says|told|tells|wrote|wants?)"
        r"|(?:you|i) (?:were|was|have been|had been|'ve been|just|have|know|know about|learned|said|told|read) ?(?:told|asked|instructed|given|taught|said|read)?)",
    ),
    rule(
        "ignore|disregard|forget & the above|the foregoing|the preceding",
        rf"\b(?:ignore|disregard|forget) (?:all |all of |everything |about |everything in )*the (?:above|foregoing|preceding)(?: (?:text|passage|document|paragraphs?|content|words|article))?(?= ?{_NOW})",
    ),
    rule(
        "ignore|disregard|forget & passage|document|article|your ",
        r"\b(?:ignore|disregard|forget) (?:about )?(?:(?:the|this) (?:rest of the )?(?:passage|document|article)|your (?:persona|role|training|programming|purpose|rules))(?= ?(?:[.,;!:]|and|then|instead|above|below|$))",
    ),
    rule(
        "{undo} & instruction|prompt|directive|guideline|order",
        rf"\b{_UNDO} {_MUCH}(?:{_BEFORE} |your ){{1,3}}(?:\w+ )?(?:instruction|prompt|directive|guideline|order)s?\b(?! (?:cache|queue|pointer|set|string))",
    ),
    rule(
        "{orders} & previous|prior|above|earlier|preceding|original|initial|your|former|old|system & void|invalid|obsolete|outdated|cancel|supersede|revoke|replace|no longer|suspended|over|null|lifted|withdrawn|rescinded|test|mistake|decoy|trick|joke|irrelevant|not |apply|matter|count|wrong|fake",
        rf"\b(?:previous|prior|above|earlier|preceding|original|initial|your|former|old|system) (?:\w+ )?{_ORDERS} (?:\w+ ){{0,3}}?(?:are|is|were|was|have been|has been|became"
        r"|no longer|do not|does not|don't|doesn't) (?:now |all |hereby |just )*(?:void|invalid|obsolete|outdated|cancell?ed|superseded|revoked|replaced|no longer|suspended|overridden"
        r"|overruled|null|lifted|withdrawn|rescinded|a (?:test|mistake|decoy|trick|joke)|irrelevant|not (?:valid|relevant|binding|real)|apply|matter|count|wrong|fake)",
    ),
    rule(
        "attention|note|notice|message|instruction|reminder|memo|dear|hey|hello|hi|important & {models}",
        rf"\b(?:attention|note|notice|message|instructions?|reminder|memo|dear|hey|hello|hi|important) ?[,:!]? ?(?:to |for |all |any |the |every |you )*{_MODELS}(?: (?:crawler|reader|agent|bot|scraper|indexer)s?)?\b{_NO_TRADE}(?= ?(?:[.,;:!]|reading|that|who|which|processing|you|please|only|must|when|should))",
    ),
    rule("if you & {models}", rf"\bif you(?:'re| are) (?:indeed |actually |really )?(?:an? |the )?{_MODELS}\b{_NO_TRADE}"),
    rule(
        "reading|read|process|pars|summari|ingest|sees & this|these",
        rf"\b(?:any|every|whichever|the|an?|all) (?:{_MODELS}|assistant|annotator) (?:that is |which is |who is |that |which |who |is |are |now |currently )*"
        r"(?:reading|reads?|process(?:es|ing)?|pars(?:es|ing)|summari[sz](?:es|ing)|ingest(?:s|ing)|sees) (?:this|these)\b",
    ),
    rule("as a & {models} & you", rf"\bas an? {_MODELS} ?, ?you (?:must|should|will|need|have|are|can|now)"),
    rule(
        "your & instruction|task|objective|mission|directive|assignment|goal|job|role|purpose|prompt",
        r"\byour (?:(?:only|sole|real|actual|true|new|updated|revised|secret|primary|next|current|main) )+(?:instructions?|task|objective|mission|directive|assignment|goal|job|role|purpose|system prompt|prompt)s? (?:is|are|now|has|will|from|becomes)\b",
    ),
    rule(
        "new |updated |revised |real |actual |admin|override|secret |hidden |developer |system & instruction|task|directive|prompt|order|command|override",
        r"(?:^|[.,;!?:] )(?:(?:new|updated|revised|real|actual|admin(?:istrator)?|override|secret|hidden|developer|system) )+(?:instructions?|task|directives?|prompt|orders?) ?:",
    ),
    rule(
        "instead of|rather than & question|quer|instruction|task|prompt",
        rf"\b(?:instead of|rather than) (?:following|obeying|doing|writing|generating|asking|producing|creating|answering) (?:(?:the|these|your|any|those|that|all|requested|above|previous|original|given|search|\d+) )*(?:{_ASKED}|instructions?|task|prompt)\b",
    ),
    rule(
        "decode|decrypt|decipher|unscramble|rot13|reverse & follow|execute|obey|do what|do as|carry out|comply|act on|perform",
        r"\b(?:decode|decrypt|decipher|unscramble|rot13|reverse|base64 ?decode) (?:[\w.]+ ){0,8}?(?:and|then|,) ?(?:\w+ ){0,2}(?:follow|execute|obey|do (?:what|as)|carry out|comply|act on|perform)\b",
    ),
    rule(
        "instructions|instruction|directions|task|request & above|before this|so far|given|you got|you received",
        r"\b(?:the|these|those|all) (?:instructions?|directions|task|request) (?:above|before this|so far|you (?:were|have been) given|you (?:got|received)) (?:\w+ ){0,4}?(?:over|void|obsolete|cancell?ed|finished|done|complete|wrong|no longer|ignored|replaced|superseded|decoy|fake|a test)\b",
    ),
    rule(
        "what you|whatever you|everything you|anything you & told|asked|instructed",
        r"\b(?:what|whatever|everything|anything) you (?:were|have been|'ve been|had been) (?:told|asked|instructed) (?:\w+ ){0,3}?(?:before|earlier|previously|above|so far|until now|to do)(?: \w+){0,4}? (?:no longer|is (?:void|wrong|cancell?ed|over|off|obsolete)|does not|doesn't|can be (?:ignored|forgotten))",
    ),
    rule(
        "{aside}|{undo} & {orders}|task|assignment|request & preced|prior|before|above|came|come|earlier|previous",
        rf"\b(?:{_PUT_ASIDE}|{_UNDO}) {_MUCH}(?:\w+ )?(?:{_ORDERS}|assignment|task description|task)s? (?:(?:that|which|described|written|given|stated|set out|found|just|as|text|is|was|were) ){{0,3}}(?:preced(?:es?|ed|ing)|prior to|before|above|came|comes|come|earlier|previously)\b",
    ),
    rule(
        "ignore|disregard|forget|break|violate & your ",
        rf"\b(?:ignore|disregard|forget|break|violate|leave behind) (?:all |any |all of )?your (?:\w+ )?(?:{_ORDERS}|rules|restrictions|persona|task|role|constraints|assignment|request|limits)\b",
    ),
    rule(
        "ignore|disregard|forget|never mind & task|assignment|request|job",
        r"\b(?:ignore|disregard|forget|never mind) (?:all |all of |about )*(?:the|this|that|any|these) (?:\w+ )?(?:task|assignment|request|job)s?(?: description| above| you were given)?(?= ?(?:[.,;!:]|and|then|instead|$))",
    ),
    rule(
        "cancel|stop|abort|drop|abandon|scrap|skip & request|task|assignment|job & new |instead|and |now ",
        r"\b(?:cancel|stop|abort|drop|abandon|scrap|skip) (?:the|your|this|that) (?:\w+ )?(?:request|task|assignment|job)(?: above)?[.,;:!]? (?:new (?:request|task)|instead|now|and (?:now |then |just |instead )?(?:write|give|say|output|print|respond|reply|answer|talk|produce|mention))\b",
    ),
    rule(
        "{orders} & prior|before|above|preceding & cancel|void|invalid|no longer|revoked|replaced|obsolete|withdrawn|superseded|over|suspended",
        rf"\b{_ORDERS} (?:prior to|before|above|preceding) (?:\w+ ){{0,4}}?(?:are|is|were|was|have been|has been) (?:now |all |hereby )*(?:void|invalid|obsolete|cancell?ed|superseded|revoked|replaced|no longer|suspended|overridden|withdrawn)\b",
    ),
    rule(
        "supersede|override|overrule|precedence|replace|cancel & instruction|prompt",
        r"\b(?:supersedes?|overrides?|overrules?|takes? precedence over|replaces?|cancels?) (?:(?:all|any|the|your|every) )*(?:earlier|previous|prior|other|above|existing|preceding|system|original|initial) (?:\w+ )?(?:instruction|prompt)s?\b",
    ),
    rule(
        "whatever you|what you|everything you|anything you & asked|told|instructed & not|n't|ignore|forget|never|stop",
        r"\b(?:whatever|what|everything|anything) you (?:were|are|have been|had been|'ve been) (?:asked|told|instructed)\b[^.\n]{0,40}(?:\bdo not\b|don't|\bignore\b|\bforget\b|\bnever\b|\bstop\b)",
    ),
    rule(
        "nothing|none & said|told|written|asked|instruct & matters|counts|applies|valid|binding|apply|matter|count",
        r"\b(?:nothing|none) (?:of (?:what|that|this|the)|that|which)? ?(?:\w+ ){0,4}?(?:said|told|written|asked|instructions?|instructed) (?:\w+ ){0,3}?(?:matters?|counts?|applies|apply|is (?:valid|binding))\b",
    ),
    rule(
        "{models} & reading|processing|parsing|summari|indexing|seeing|ingesting|scraping|crawling",
        rf"\b{_MODELS}(?: that| which| who)?(?: is| are| may be| might be)?(?: now| currently)? (?:reading|processing|parsing|summari[sz]ing|indexing|seeing|ingesting|scraping|crawling) (?:this|these)\b",
    ),
    rule(
        "to the|to any|to all|to every|for the|for any|for all & {models}",
        rf"(?:^|[.!?;\n] ?|\b(?:note|message|instructions?|addressed|word) )(?:to|for) (?:the|any|all|every|whichever) (?:\w+ )?{_MODELS}(?: \w+ (?:this|these)(?: \w+)?)? ?[:,!]",
    ),
    rule(
        "your & changed|replaced|updated|cancel|suspended",
        r"\byour (?:\w+ )?(?:role|task|job|purpose|goal|assignment|instructions?|orders|prompt|mission|objective) (?:has|have) (?:now |just )?(?:changed|been (?:changed|replaced|updated|cancell?ed|suspended|reset))\b",
    ),
    rule(
        "{aside}|{undo} & prompt|instruction|directive|direction & you",
        rf"\b(?:{_PUT_ASIDE}|{_UNDO}) (?:(?:all|any|of|the|every|those|these) ){{0,3}}(?:\w+ )?(?:instructions?|prompts?|directives?|directions) (?:that )?you (?:(?:have|had|were|just|previously) ){{0,2}}(?:received|given|got|read|seen|told)\b",
    ),
    rule(
        "obey|follow|listen & operator|user|developer|system|prompt|creator|owner",
        r"\b(?:no longer|do not|don't|never|stop|must not|cease to) (?:obey(?:ing)?|follow(?:ing)?|listen(?:ing)? to) (?:the|your|any|a) (?:operator|user|developer|system prompt|prompt|creator|owner)s?\b",
    ),
    rule(
        "your & here|now",
        r"\byour (?:instructions?|task|prompt|brief|orders) (?:ends?|stops?|finish(?:es)?|(?:is|are) (?:over|complete|finished|done)) (?:here|now)\b",
    ),
    rule(
        "ignore|disregard|forget & all ",
        r"\b(?:disregard|forget|ignore) all (?:of )?(?:that|this|the rules|rules|of it)(?: (?:above|before|given))?(?= ?(?:[.,;!]|and (?:now |just |then |instead )?(?:write|type|say|print|output|respond|reply|answer|give|produce)|instead|then (?:write|say|type|print)))",
    ),
    rule(
        "do not do|don't do|never do & prompt|user|system|operator|instruction",
        r"\b(?:do not|don't|never) do (?:anything |what )(?:that )?(?:the|your) (?:prompt|user|system|operator|instructions?|system prompt)\b",
    ),
)

_TELL = (
    r"(?:reveal(?:ing)?|show|quoting|repeating|printing|listing|print(?: out)?|repeat|output|display|tell (?:me|us)|leak|expose|disclose|share|give (?:me|us)|dump|recite|echo|reproduce"
    r"|quote|write (?:out|down)|list|summari[sz]e|paraphrase|encode|include|copy|paste|send|spell out|describe|state|append|embed|mention|insert)"
)
EXFILTRATION = (
    rule(
        "your & prompt|instructions|directives|persona|guidelines|system message|hidden rules",
        rf"(?<!not )(?<!never )(?<!n't )\b{_TELL} (?:[\w']+ ){{0,5}}?your (?:\w+ ){{0,3}}?(?:prompts?|instructions|directives|persona|guidelines|system messages?|hidden rules)\b(?! (?:manual|for use|leaflet))",
    ),
    rule(
        "prompt|instructions|persona & system|hidden|secret|internal|initial|developer|confidential|original",
        rf"\b{_TELL} (?:\w+ ){{0,5}}?(?:the|this|any) (?:\w+ )?(?:system|hidden|secret|internal|initial|developer|confidential|original) (?:prompt|instructions|persona)\b",
    ),
    rule(
        "the persona|the prompt|the instructions",
        rf"\b{_TELL} (?:\w+ ){{0,4}}?(?:the persona (?:description|you)|the (?:prompt|instructions) (?:you were given|you (?:have )?received|above|verbatim|word for word))",
    ),
    rule(
        "repeat & everything|all|the words|the text|the sentence|the line|verbatim|what",
        r"\brepeat (?:back )?(?:to me )?(?:everything|all|the (?:words|text|sentences?|lines?)|verbatim|what) (?:\w+ ){0,3}?(?:above|before this|you were|you have been|preceding|you've been)",
    ),
    rule(
        "what & you told|you asked|you instructed|your",
        r"\bwhat (?:were|are|was|is) (?:you (?:told|asked|instructed)|your (?:\w+ )?(?:instructions|system prompt|prompt|initial prompt))\b",
    ),
    rule(
        "api key|secret|password|credential|access token|environment variables",
        r"(?<!not )(?<!never )(?<!n't )\b(?:reveal|print|output|leak|dump|expose|exfiltrate|include|append|embed|repeat|tell me) (?:\w+ ){0,4}?(?:your|all|any) (?:\w+ )?(?:api keys?|secret keys?|secrets|passwords?|credentials|access tokens?|environment variables)\b[^.\n]{0,40}\b(?:you|your|in (?:each|every|all|the))\b",
    ),
    rule(
        "conversation|chat history|your|system prompt & send|post|forward|upload|submit|transmit|leak|exfiltrate|email",
        r"\b(?:send|post|forward|upload|submit|transmit|leak|exfiltrate|email) (?:\w+ ){0,6}?(?:conversation|chat history|your (?:\w+ )?(?:prompt|instructions|persona)|system prompt) (?:\w+ ){0,4}?(?:to|at)\b",
    ),
    rule(
        "above|before|preceding & this",
        r"\b(?:text|words|prompt|instructions?|messages?) (?:that (?:is|are|comes?|stands?) )?(?:above|before|preceding) this (?:document|passage|text|article|page)\b",
    ),
)
IMAGE = rule("](http", r"!\[[^\]]*\]\(https?://[^)\s]*[?&][^)=\s]*=\s*(?:\{|<|\[|%7b|\$\{)")

_COMMAND = r"(?:^|[.!?;:,\n] ?|\b(?:please|now|then|instead|always|simply|just|only|you (?:must|should|shall|will|may|can|need to|have to|are to)|and you) )"
FORMAT = (
    rule(
        "respon|reply|answer & only|just|solely|exclusively|strictly|simply|always|exactly|entirely|instead|immediately",
        r"\b(?:respond|reply|answer)(?:ing)? (?:\w+ ){0,4}?(?:only|just|solely|exclusively|strictly|simply|always|exactly|entirely|instead|immediately) (?:with|in|using) (?!a (?:4|5|2|3)\d\d)",
    ),
    rule(
        "respon|reply|answer & with|using & only|just|exactly|nothing but|the",
        rf"{_COMMAND}(?:respond|reply|answer) (?:\w+ ){{0,3}}?(?:with|using) (?:only|just|exactly)\b|\b(?:respond|reply|answer) (?:\w+ ){{0,3}}?(?:with|using) (?:nothing but|the (?:single |one |exact |following )*(?:word|phrase|sentence|string))\b",
    ),
    rule(
        "respond|reply|answer & {formats}",
        rf"{_COMMAND}(?:respond|reply|answer) (?:\w+ ){{0,3}}?(?:in|with|using|as) (?:a (?:single )?|the )?{_FORMATS}\b",
    ),
    rule(
        "only|just|exactly|nothing|solely|exclusively & word|phrase|sentence|{formats}",
        rf"{_COMMAND}{_SAY} (?:me |us |out |back )?(?:only|just|exactly|nothing but|nothing except|nothing other than|solely|exclusively) (?:with )?(?:the |this |these |one |a |single |following |exact )*(?:words?|phrase|sentence|{_FORMATS})\b",
    ),
    rule("nothing else|nothing more", rf"{_COMMAND}{_SAY} [^.\n]{{1,60}}?\b(?:and|with) nothing (?:else|more)\b"),
    rule(
        "do not|don't|never|stop|cease|refrain from|quit & question|quer",
        rf"\b(?:do not|don't|never|stop|cease|refrain from|quit) (?:write|writing|generate|generating|produce|producing|create|creating|output|outputting|formulate|formulating|compose|composing) (?:(?:any|the|these|those|more|a|your|requested|search|further|such) ){{0,3}}{_ASKED}\b",
    ),
    rule(
        "each|every|all & must|should|shall|has to|have to|need|will|is to|are to & question|quer|answer|respon|repl|output",
        rf"\b(?:each|every|all) (?:(?:of|the|your|these|generated|search|single|one) )*{_SAID} (?:must|should|shall|has to|have to|needs? to|will|is to|are to) (?:\w+ )?(?:contain|include|end|begin|start|mention|be (?:replaced|in|written|exactly|followed|about)|read|say|use)\b",
    ),
    rule(
        "your & must|should|shall|has to|have to|need|will|is to|are to & question|quer|answer|respon|repl|output",
        rf"\byour (?:\w+ )?{_SAID} (?:must|should|shall|has to|have to|needs? to|will|is to|are to) (?:now |only |always |all |instead )*(?:contain|include|end with|begin with|start with|mention|be (?:replaced|in|written|exactly|followed|only|just|(?:a |an )?{_FORMATS})|read|say|consist)\b",
    ),
    rule(
        "begin|start|end|finish|prefix|preface|precede|append|prepend|conclude & every|each|all|your & question|quer|answer|respon|repl|output",
        rf"\b(?:begin|start|end|finish|prefix|preface|precede|append|prepend|conclude) (?:with )?(?:every|each|all|your) (?:of your |of the )?(?:\w+ )?{_SAID} (?:with|by|using)\b",
    ),
    rule(
        "append|add|insert|include|attach|put|place|mention|embed|weave|hide|repeat|use|work|write|say & every|each|all|your|any & question|quer|answer|respon|repl",
        rf"\b(?:append|add|insert|include|attach|put|place|mention|embed|weave|hide|repeat|use|work|write|say) [^.\n]{{1,80}}?\b(?:to|in|into|at the (?:very )?(?:end|start|beginning) of|after|before|within|inside|as) (?:every|each|all of your|all|your|any) (?:(?:of|the|your|single|one|next|first|last|generated|search) )*(?:{_ASKED}|answers?|responses?|repl(?:y|ies)|outputs?)(?: you (?:write|make|give|generate|produce))?(?= ?(?:[.,;!:\n]|$|you|and|that|exactly|so|now|without|below|it|as))",
    ),
    rule(
        "switch|change|convert|set|translate|transform & output|answer|respon|repl|question|quer & {formats}",
        rf"\b(?:switch|change|convert|set|translate|transform) (?:the |your )(?:\w+ )?(?:output|answers?|responses?|repl(?:y|ies)|{_ASKED})(?: format| language)? (?:to|into|in) (?:a |an |the )?(?:valid )?{_FORMATS}\b",
    ),
    rule(
        "instead & a|the|some|only|just|one|this|your",
        rf"\binstead (?:of (?:that|this|the above|it|questions|queries|a question) ?)?,? ?(?:you (?:must|should|will|shall|are to) )?{_SAY} (?:me |us |out )?(?:a|an|the|some|only|just|one|this|your) (?:\w+ ){{0,3}}?(?:poem|haiku|limerick|joke|story|song|rap|essay|recipe|sonnet|letter|tweet|rhyme|slogan|riddle|word|phrase|sentence|password|list|text|code|{_FORMATS})\b",
    ),
    rule(
        "poem|haiku|limerick|joke|story|song|rap|sonnet|rhyme|slogan|riddle & instead|rather",
        rf"{_COMMAND}{_SAY} (?:me |us )?(?:a|an|the|some|one) (?:\w+ ){{0,3}}?(?:poem|haiku|limerick|joke|story|song|rap|sonnet|rhyme|slogan|riddle)\b[^.\n]{{0,60}}\b(?:instead|rather)\b",
    ),
    rule(
        "format|question|quer & changed|replaced|no longer|not ",
        rf"\b(?:the|all|your) (?:requested |output |answer )?(?:format|{_ASKED}) (?:(?:\w+ ){{0,2}}(?:changed|replaced)|(?:is|are) (?:no longer|not) (?:needed|wanted|required|numbered))\b[^\n]{{0,80}}\b{_SAY}\b",
    ),
    rule(
        "answer|respon|repl|question|quer & {formats}",
        rf"{_COMMAND}(?:use|return|output|give|produce) (?:your |the )?(?:answers?|responses?|repl(?:y|ies)|{_ASKED}) (?:in|as) (?:a |an )?{_FORMATS}\b",
    ),
    rule(
        "topic of|subject of|focus of|theme of & question|quer|answer|respon",
        rf"\b(?:topic|subject|focus|theme) of (?:every|each|all|all of your|all the) (?:\w+ )?{_SAID}\b",
    ),
    rule(
        "all |both & question|quer & mention|contain|include",
        rf"\ball (?:\w+ )?{_ASKED} (?:have to|must|should|need to|shall|will|are to) (?:\w+ )?(?:mention|contain|include|end|begin|start|be about)\b",
    ),
    rule(
        "only |just & respond|reply|answer",
        r"(?:^|[.!?;:,] |\b(?:you|please|must|should|now|and) )(?:only|just) (?:respond|reply|answer) (?:with|in|using)\b",
    ),
    rule(
        "the only & output|answer|respon|repl|query|queries|question",
        rf"\bthe only (?:acceptable|valid|allowed|correct|permitted|accepted|legal) {_SAID} (?:is|are|will be)\b",
    ),
    rule("your & {formats}", rf"\b{_SAY} (?:all |each of )?your {_SAID} (?:in|as) (?:a |an |valid )?{_FORMATS}\b"),
    rule(
        "replace|substitute & question|quer",
        rf"\b(?:replace|substitute|swap) (?:every|each|all|your|all of your) (?:\w+ )?{_ASKED} (?:with|by|for)\b",
    ),
    rule(
        "as your & answer|respon|repl|output|question|query",
        rf"{_COMMAND}{_SAY} [^.\n]{{1,40}}? as (?:your|the) (?:only |single |whole |entire |final )?(?:answer|response|reply|output|question|query)\b",
    ),
    rule(
        "your & must|should|shall & string|word|phrase|same",
        rf"\byour {_SAID} (?:must|should|shall|will|have to) (?:all |only |each |now ){{0,2}}be (?:the|just|only) (?:string|word|phrase|words|text|same)\b",
    ),
    rule("nothing but|nothing except", rf"{_COMMAND}{_SAY} (?:nothing but|nothing except|nothing other than) "),
)
