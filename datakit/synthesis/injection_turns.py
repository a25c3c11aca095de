"""What pretends to be more than a text: tokens of chat templates, turns of a conversation, new roles, and the end of the text."""

# ruff: noqa: E501 - a pattern stands on one line
from __future__ import annotations

from datakit.synthesis.injection_english import rule

TOKENS = (
    rule(
        "<",
        r"<[|｜](?:im_start|im_end|im_sep|system|user|assistant|end|endoftext|endofprompt|eot_id|eom_id|start_header_id|end_header_id|begin_of_text"
        r"|end_of_text|start_of_role|end_of_role|channel|message|start|return|python_tag|tool_call|"
        r"(?:begin|end)[▁_]of[▁_]sentence|assistant[▁_]?|user[▁_]?)[|｜]>",
    ),
    rule("<", r"<[|｜](?:user|assistant|system)[|｜]?>"),
    rule(
        "[inst]|[/inst]|<<sys|<</sys|_of_turn|<bos>|<eos>|start_of_|end_of_",
        r"\[/?inst\]|<</?sys>>|</?(?:start|end)_of_turn>|<(?:bos|eos)>\s*(?:user|system|human)|<\|(?:start|end)_of_",
    ),
    rule(
        "[system_|[/system_|[available_|[/available_|[tool_|[/tool_|<extra_id",
        r"\[/?(?:system_prompt|available_tools|tool_calls)\]|<extra_id_\d+>\s*(?:system|user|assistant)",
    ),
    rule("##", r"(?:^|\n|[.!?] )#{2,4} ?(?:system|instructions?|response|assistant|human|user|input) ?(?:prompt|message)? ?:"),
)
_ORDERING = (
    r"(?:you (?:are|must|should|will|shall|now|have|may)|ignore|from now|new |do not|don't|always|never|please|respond|answer|reply|output|write|print"
    r"|forget|disregard|override|stop|the (?:user|task|assistant|passage|document|text|questions?)|your |switch|generate|produce|only|just|say|repeat|reveal|instead|begin|act|speak)"
)
TURN = (
    rule(
        "system|developer|admin|root & :|>|]",
        rf"(?:(?:^|\n|[.!?] )[\[(*<# ]*|\[)(?:system|developer|admin(?:istrator)?|root)(?: (?:prompt|message|instructions?|override|note|alert|update|notice))?[\])*># ]* ?[:>\]] ?[*\]]* ?{_ORDERING}\b",
    ),
    rule(
        "assistant|ai|model|bot & :",
        r"(?:^|\n)[\[(*<# ]*(?:assistant|ai|model|bot)[\])*># ]* ?: ?(?:sure|understood|ok(?:ay)?|of course|certainly|absolutely|yes|got it|here (?:is|are)|1[.)]|i (?:will|can) (?:now )?ignore)\b"
        r"[^\n]{0,80}?(?:ignore|ignoring|instead|from now|new (?:task|instruction)|here (?:is|are)|\n?1[.)]|questions?|quer(?:y|ies)|task)",
    ),
    rule(
        "human|user & assistant|ai|model|bot & :",
        r"(?:^|\n|[.!?] )(?:human|user) ?: ?(?:[\w ,!.']{0,30}?\b)?(?:ignore|disregard|forget|write|print|output|say|repeat|reveal|respond|reply|answer|instead|tell me|show me|stop)\b[^\n]*\n(?:assistant|ai|model|bot) ?:",
    ),
    rule(
        "role & system|developer & content",
        rf"[\"']role[\"'] ?: ?[\"'](?:system|developer)[\"'] ?, ?[\"']content[\"'] ?: ?[\"'] ?(?!you are an? (?:helpful|friendly|pirate|assistant|expert|useful)){_ORDERING}\b",
    ),
)
ROLE = (
    rule(
        "you are now|you're now",
        r"\byou(?:'re| are) now (?:(?:an? |the |in |going to be |my |called |known as )*(?:\w+ ){0,2}?(?:dan|(?:developer|debug|god|jailbreak|admin|maintenance|root|unrestricted) mode|unrestricted|unfiltered"
        r"|uncensored|evil|pirate|poet|assistant|ai|chatbot|bot|terminal|model|translator|parrot|echo|interpreter|generator|simulator|comedian|writer|hacker|compiler|calculator|copywriter|json)"
        r"|no longer (?:bound|restricted|an? |required|limited|obliged|asked)|free (?:of|from) (?:all |any |your |the )*(?:rules|restrictions|instructions|limits|constraints|guidelines))\b",
    ),
    rule(
        "act |behave|respond |speak |talk |write |function |operate & as a|as i|as my|as our|as the|like & pirate| ai|chat|bot|terminal|parrot|linux|python|json|assistant|language model|unrestricted|copywriter|shakespeare|yoda|robot",
        r"(?:^|[.!?;:,\n] ?|\b(?:please|now|then|must|to|and|instead|will|on,?) )(?:act|behave|respond|speak|talk|write|function|operate) (?:only )?(?:as|like) (?:if you (?:are|were) )?(?:an?|the|my|our) (?:\w+ ){0,2}?(?:pirate|(?:ai|chat ?bot|bot|terminal|parrot|linux|python interpreter|json)\b|assistant|language model|unrestricted|copywriter|shakespeare|yoda|robot)",
    ),
    rule(
        "pretend|imagine|role",
        r"(?:^|[.!?;:,\n] ?|\b(?:please|now|then|must|instead|let's) )(?:pretend|imagine|role ?-?play)(?: (?:to be|that|as|like))? (?:you(?:'re| are| were)? |an? )(?:an? |the |now |not |never )*(?:\w+ ){0,2}?(?:ai|chatbot|bot|language model|assistant|dan|pirate|hacker|unrestricted|free|bound|model|jailbroken|never (?:been|got|were)|received)\b",
    ),
    rule(
        "mode & you|answer|respond|output|and ",
        r"\b(?:enter|enable|activate|switch to|engage|you are in) (?:the )?(?:dan|developer|debug|god|jailbreak|admin|sudo|unrestricted|maintenance) mode\b(?=[^.\n]{0,60}\b(?:you|your|answer|respond|output|and (?:ignore|write|print|say))\b)",
    ),
    rule(
        "from now|from this|from here",
        r"\bfrom (?:now|this point|here|this moment) (?:on|onwards?|forward) ?,? ?(?:you (?:are|will|must|shall|should|can|only|always|answer|respond|speak|act)|your (?:name|role|task|job|answers?|outputs?|only)|(?:respond|answer|reply|output|speak|act|write|say|print|generate|produce) )",
    ),
    rule("jailbreak|do anything now", r"\b(?:jailbreak|do anything now)\b(?=[^.\n]{0,80}\b(?:you|your|mode|prompt)\b)"),
    rule(
        "persona",
        r"\b(?:abandon|leave|drop|break|change|replace|discard|switch) (?:your|the) (?:current |assigned |given )?persona\b",
    ),
    rule(
        "role|persona|character|as though",
        r"(?:^|[.!?;:] )(?:now |please |then )?(?:(?:take on|assume|adopt|play|switch to) the (?:role|persona|character|identity) of an? |(?:respond|answer|reply|write|act|speak) as though you (?:are|were) )",
    ),
)

_TAG_NAMES = r"(?:document|passage|context|user_?input|untrusted\w*|prompts?|instructions?|system|quer(?:y|ies)|user_?data|retrieved\w*|doc|seed|excerpt|external\w*|persona)"
FENCE = (
    rule("</", rf"</ ?{_TAG_NAMES}(?:[-_ ][\w-]+)? ?>\s*\S+ \S+ \S+"),
    rule(
        "end",
        rf"(?:(?:^|\n)[-=#*<>\[( ~_]{{0,12}}|(?<!\w)[-=#*<>\[~_]{{1,12}} ?)end (?:of )?(?:the |this |your )?(?:untrusted |user |source |quoted |given |retrieved )?(?:document|passage|context|input|data|prompt|text|material|excerpt)s?(?: (?:here|block))?[\])]?[-=#*<>\]) ~_.:]{{0,12}}\n[^\n]*?\b(?:{_ORDERING}|now)\b",
    ),
    rule(
        "'''|\"\"\"|```|~~~|---|===|>>>|<<<|***|###",
        r"(?:'''|\"\"\"|```|~~~|---+|===+|>>>+|<<<+|\*\*\*+|###+)[^\n]{0,20}\n?(?:(?:now|ok(?:ay)?|and|next|the (?:passage|document|text) (?:ends?|is over)[^\n]{0,20}?)[,.: ]*)*(?:(?:your |the )?(?:new|real|next|actual|updated|system) (?:task|instructions?|prompt|system)\b|ignore (?:all|the|every|any|previous)|disregard|forget|you (?:are now|must now|will now|must)|write (?:only|\d)|output only|respond (?:only|with)|system ?[:>])",
    ),
    rule(
        "passage|document|text|source text|quoted text|untrusted|material & ends|stops|over|finish|ended|complete",
        r"\b(?:the|this|our) (?:passage|document|text|source text|quoted text|untrusted (?:text|data|content)|material) (?:ends|stops|is over|is finished|has ended|ended|is complete|finishes) (?:here|now|at this point)?[.,:;!]? ?(?:\w+ ){0,3}?(?:now|what follows|everything (?:below|after)|the following|below|your|instructions?|new|write|respond)\b",
    ),
    rule(
        "follows|below|after this|comes next & not part|user|system|developer|operator|real|actual|new|trusted",
        r"\b(?:what|everything|all|text) (?:that )?(?:follows|below(?: this(?: line)?)?|after this(?: line)?|comes next) (?:is|are|comes) (?:not part of (?:the|this) (?:passage|document|text)|from the (?:user|system|developer|operator)|(?:a |an |the )?(?:real|actual|new|trusted|system) (?:instructions?|prompt|message|task))",
    ),
    rule(
        "{{|{%",
        r"\{\{ ?(?:passage|persona|queries|structured|forms)\b|\{% ?(?:end)?(?:block|raw|if|for)\b[^%]*%\}[^\n]{0,40}\b(?:ignore|system|user|write|instructions?)\b",
    ),
)
