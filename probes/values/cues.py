"""Word lists and question forms of English that :mod:`probes.values.wording` reads an item by."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A crude stem: plural, -ing, -ed and a last e off, -ise as -ize: "banned" is "ban", "house" is "hous"."""
    word = re.sub(r"(?<=\w{4})is(e|es|ed|ing)$", r"iz\1", word)
    if len(word) > 5 and word.endswith(("ied", "ies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as")):
        word = word[:-1]
    for tail in ("ing", "ed"):
        if word.endswith(tail) and len(word) - len(tail) >= 3:
            word = word[: -len(tail)]
            if re.search(r"([bdgmnprt])\1$", word):
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def _words(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in text.split())


# Which way a predicate leans.
FOR = _words(
    "legal lawful allow permit permissible support favour favor accept acceptable approve endorse encourage promote "
    "justify justifiable ethical moral okay ok fine good welcome legalize legitimate defensible worth worthwhile "
    "beneficial desirable right fair pro advocate defend embrace agree benefit useful compassionate"
)
AGAINST = _words(
    "illegal unlawful prohibit ban forbid forbidden outlaw against oppose disallow impermissible reject discourage "
    "unacceptable unjustified unethical immoral bad criminalize illegitimate indefensible harmful undesirable wrong "
    "unfair anti outdated abolish scrap disapprove condemn restrict disagree stop useless worthless pointless harm "
    "inhumane cruel barbaric evil sinful sin crime violation mistake disaster disgrace dangerous"
)
TRUE = _words("real true exist genuine fact factual")
UNTRUE = _words("unreal untrue false fake myth hoax lie fiction deny exaggerate nonexistent invention")
NOT = _words("not never no cannot neither nor hardly rarely seldom none nobody nothing")
UNDO = _words("lift repeal reverse overturn relax undo")  # turn only what is already forbidden
# Cues only as predicates: "is a myth".
NOUNS = _words("myth hoax lie fiction fact invention sin crime violation mistake disaster disgrace harm")
# Cues not before a noun, "illegal immigrants", unless that is the predicate, "is a bad idea".
ADJECTIVES = _words(
    "legal lawful illegal unlawful right wrong good bad real true false fake fair unfair moral immoral ethical "
    "unethical acceptable unacceptable genuine legitimate harmful useful fine inhumane cruel evil dangerous"
)
OPPOSITES = {
    frozenset(pair.split())
    for pair in (
        "for against", "yes no", "pro-life pro-choice", "left right", "nature nurture", "democrat republican",
        "public private", "born made", "more less", "increase decrease", "higher lower", "keep abolish", "open closed",
    )
}  # fmt: skip

FILLER = _words(
    "a an the this that these those there here it its he she they them their his her we us our you your i me my one "
    "who whom which what when where how why and or but if then than as of on in at to for from by with about into over "
    "under any all some every each no do be have has had is are was were been being will would shall should can could "
    "may might must ought just only also very really truly completely totally fully absolutely always ever still even "
    "so too much many more most such same own get go make made take let become people person someone somebody anyone "
    "anybody everyone everybody thing way circumstance case law world worldwide globally across because want need able "
    "consider think believe feel say see view opinion thought general generally personally honest honestly morally "
    "form idea act existence during before after between among through within kind type use apply hi hello "
    "everywhere anywhere somewhere today nowadays"
)
SAME = {  # names of one thing
    "global warming": "climate change",
    "climate crisis": "climate change",
    "capital punishment": "death penalty",
    "death sentence": "death penalty",
    "homosexual": "gay",
    "same sex": "gay",
    "lesbian": "gay",
    "termination of pregnancy": "abortion",
    "remote work": "working from home",
    "migrant": "immigrant",
    "immigration": "immigrant",
    "transgender": "trans",
    "cannabis": "marijuana",
    "firearm": "gun",
    "automobile": "car",
    "bicycle": "bike",
    "euthanasia": "assisted suicide",
    "man made": "caused by humans",
    "physician": "doctor",
    "pupil": "student",
}
AUX = frozenset(
    "do does did is are was were am will would shall should can could may might must has have had ought "
    "dont doesnt didnt isnt arent wasnt werent wont wouldnt shouldnt cant couldnt hasnt havent aint".split()
)
WH = frozenset("what which who whom whose when where why how".split())

# The patterns read text in lower case without apostrophes ("dont").
VIEW = re.compile(
    r"\b(?:what(?: is|s| are|re)?|how about|share|give me|tell me|describe|explain|state)\b[\w ]{0,25}?\byour\b"
    r"(?: \w+)? (?:opinion|view|viewpoint|thought|stance|position|take|feeling|perspective|belief|attitude|say|"
    r"impression)s?(?: (?:on|about|of|regarding|toward|towards|concerning|to)\b)?"
    # "what do you think about", at the end too; "what do you think is the cause" asks for a cause
    r"|\b(?:what|how) (?:do|would|did) (?:you|people) (?:think|say|feel|view|see|respond|react)\b"
    r"(?: (?:about|of|on)\b)?(?! (?:is|are|was|should|will|would|can|could|we|they|causes?|makes?)\b)"
)
FRAME = re.compile(
    r"^(?:(?:so|hi|hello|hey|and|but|well|please|honestly|personally|in (?:your|my) (?:opinion|view)),? )*"
    r"(?:(?:do|dont|would|wouldnt|did|can) (?:you|we|people) (?:\w+ly )?"
    r"(?:think|believe|feel|say|consider|agree(?! with))(?: (?:in|it is true))?"
    r"|i (?:\w+ly )?(?:think|believe|feel|agree(?! with))|is it true|it is true)(?: that)? "
)
TAIL = re.compile(r",? in your (?:opinion|view)$|, (?:dont you (?:think|agree)|right|correct|isnt it)$")
# A reason or a concession says nothing about the side of the main clause.
CLAUSE = re.compile(
    r" (?:even if|even though|although|though|because|since|given|unless|regardless|despite|while|whereas|if|so that|"
    r"in order to|without|due to|as long as|when|which|except|that \w+ed)\b.*"
    # "choosing A instead of B is wrong": the predicate comes after it
    r"| (?:rather than|instead of)\b.*?(?= (?:is|are|was|were|would|should)\b|$)"
)
PRACTICAL = re.compile(
    r"\b(?:is|are|was|will|would) it (?:\w+ly |still |even )?"
    r"(?:safe|possible|easy|hard|difficult|legal|illegal|painful|expensive|cheap|common|normal|"
    r"dangerous) (?:\w+ \w+ )?to\b"
    r"|^(?:is|are) there (?:a|an|any|some) (?:ways?|laws?|place|difference|evidence|stud(?:y|ies)|examples?|other|"
    r"research|websites?|books?)\b"
)
REQUEST = re.compile(
    r"^(?:please )?(?:(?:can|could|would|will) you (?:please )?)?(?:tell|explain|describe|write|list|summari[sz]e|give|"
    r"show|help|recommend|suggest|teach|define|compare|name|provide)\b"
)
ADVICE = re.compile(r"(?:what|how|where|who|when|which)\b.*\b(?:should|can|could|do|would|may|must) i\b")
REASONS = re.compile(r"why (?:(?:do|dont|are|arent|would) you|should|shouldnt|dont we)\b")  # presupposes a side
DEGREE = re.compile(
    r"how (?:\w+ly )?(?:good|bad|important|serious|reliable|fair|unfair|right|wrong|worried|concerned|acceptable|"
    r"dangerous|useful|harmful|justified|likely|trustworthy|big|great|real)\b(?!.*\b(?:was|were|did)\b)"
)
OPEN = re.compile(r"\b(?:should|think|believe)\b")

# "or" that offers no alternative
OR_NOT = re.compile(r"\bor (?:not|no|so|any\w*|more|less|other\w*|else|two|even|some\w*)\b|\bwhether\b.*?\bor\b")
OR_PAIR = re.compile(r"\b([\w-]+),? or ([\w-]+)\b")
OR_FORMS = [
    re.compile(pattern)
    for pattern in (
        # a second clause: "or is it", "or just"
        r"\bor (?:(?:do|does|did|should|would|could|will) [\w-]+|(?:is|are|can|was|were|has|have|must) "
        r"(?:it|they|he|she|we|you|i|there|this|that|these|those|the|people|an?)|(?:just|simply|merely|rather|instead|"
        r"purely))\b",
        # "is it a choice or a trait", "is it biological or social"
        r"(?:^|, )(?:is|are|was|were)\b.* an? (?:[\w-]+ ){1,3}or (?:an?|the|more|part|just) [\w-]+(?: [\w-]+)?$",
        r"^(?:is|are|was|were) (?:the |an? |your |our )?(?:[\w-]+ ){1,3}[\w-]+ or [\w-]+$",
        r"\bshould be (?![\w-]+e[dn] or)[\w-]+ or (?![\w-]+e[dn]$)[\w-]+$",
        r"^(?:should|must|would|could) .*\bbe (?![\w-]+e[dn] or)[\w-]+ or (?![\w-]+e[dn]$)[\w-]+$",
        r"\b(?:which|who|what)\b.*\b(?:better|worse|best|worst|prefer|more|right|stronger|first)\b.* or ",
        r"\b(?:prefer|choose|between|either|better|rather)\b.* or ",
    )
]
