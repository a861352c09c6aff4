"""English words that carry grammar and no subject: phrases end at them.

Articles, pronouns, prepositions, conjunctions, auxiliaries, with and without their contractions; then the verbs,
adverbs and interjections that fill talk; then the abbreviations of posts. A word with an apostrophe is looked up
with a straight one, and without what follows it (`she'll`: `she`).
"""

_GRAMMAR = """
a an the this that these those some any each every either neither both all no none such another other same own
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves one ones who whom whose which what whatever whoever
someone somebody something anyone anybody anything everyone everybody everything nobody nothing
of in on at by for with about against between into through during before after above below to from up down out off
over under again further than as like unlike via per within without across along among around behind beside besides
beyond despite except inside near onto outside since till until toward towards upon
and or but nor so yet if because while although though unless whereas whether then else when where why how
be am is are was were been being have has had having do does did done doing will would shall should can could may
might must ought need dare cannot not ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan
shouldn wasn weren won wouldn let
aint arent cant couldnt didnt doesnt dont hadnt hasnt havent isnt shouldnt wasnt werent wont wouldnt
im ive youre youve hes shes theyre theyve whats thats theres heres lets
"""
_TALK = """
get gets got gotten getting go goes going gone went come comes came coming make makes made making take takes took
taking give gives gave say says said saying tell told know knows knew known think thinks thought see sees saw seen
look looks looked looking want wants wanted seem seems seemed keep keeps kept put puts feel feels felt use used
just only also too very really quite rather pretty much many more most few less least lot lots bit even ever never
always often sometimes usually still already almost enough now here there today tomorrow yesterday tonight soon
maybe perhaps actually basically probably definitely literally totally well okay ok yes yeah yep yay nope oh ah wow hey
hi hello please thanks thank back away together instead however anyway first last next once twice new old good better
best bad worse worst great nice sure able around way ways thing things stuff kind sort
"""
_POSTS = """
rt via amp lol lmao lmfao rofl omg omfg wtf btw imo imho idk tbh smh fyi gonna gotta wanna kinda sorta u ur r n b c k
im ya yall y'all haha hahaha hehe ugh hmm xd pls plz thx ty cuz cos coz bc w
"""

STOP_WORDS = frozenset(f"{_GRAMMAR} {_TALK} {_POSTS}".split())
