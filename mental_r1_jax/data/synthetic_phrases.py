"""Invented phrases of the synthetic sets: eight or more cues a label, and what goes between them.

Nobody said these; they are gentle, indirect and without detail on purpose. Cues of the labels of
one set reuse each other's words, so that no single word gives a label away.
"""

from __future__ import annotations

from collections.abc import Mapping

OPENINGS: tuple[str, ...] = (
    "",
    "these days",
    "since last week",
    "to be honest",
    "right now",
    "for a while",
    "I feel that",
    "once more",
)

# They name work, school, friends, money and health without being about them.
NEUTRAL_PHRASES: tuple[str, ...] = (
    "the bus to work was on time",
    "it rained near the school today",
    "I had tea with a friend",
    "the shop has new bread",
    "my cat sat by the door",
    "the park was green this morning",
    "my sister called about a film",
    "I read a book in the evening",
    "the doctor next door has a new car",
    "we had soup for dinner",
    "I paid for a coffee in town",
    "the team played on the radio",
    "a letter came in the morning",
    "the train was full today",
    "I walked home from class",
    "my phone is nearly new",
)

_STRESS = {
    "Yes": (
        "the deadlines are more than I can meet",
        "my thoughts do not slow down at night",
        "I cannot rest after the last call",
        "there is no time left to breathe",
        "my chest is tight in every meeting",
        "I lie awake through the night",
        "everything has to be done at once",
        "small things make me snap at home",
        "my hands are cold when the phone rings",
        "I am not well with all of my plans",
    ),
    "No": (
        "the deadlines are done for the day",
        "my thoughts slow down at night",
        "I can rest after the last call",
        "there is enough time left to breathe",
        "I am at ease in every meeting",
        "I sleep through the night and wake rested",
        "everything gets done one thing at a time",
        "small things make me smile at home",
        "my hands are calm when the phone rings",
        "I am well with all of my plans",
    ),
}

_DEPRESSION = {
    "Not depressed": (
        "I look forward to the days",
        "my friends and I laugh a lot",
        "food tastes good again",
        "getting up is easy for me",
        "I enjoy music and my garden",
        "a bad day is over by evening",
        "I sleep the whole night",
        "I like to make plans for summer",
    ),
    "Moderately depressed": (
        "some days are grey and slow",
        "I laugh less with my friends",
        "food tastes of little some days",
        "getting up is hard on most days",
        "I enjoy music less than before",
        "a bad day lasts for most of a week",
        "I sleep badly on some nights",
        "I still go out but it takes effort",
    ),
    "Severely depressed": (
        "all days are dark and empty",
        "I have not laughed with anyone for months",
        "I hardly eat any food at all",
        "I have not got up for days",
        "I enjoy nothing any more",
        "a good day has not come for months",
        "I do not sleep on any night",
        "I see no plans for me at all",
    ),
}

_RISK = {
    "Indicator": (
        "I am low and ask for a kind word",
        "I worry about a friend who is so low",
        "I read about the helpline for a friend",
        "my days are hard but I am safe",
        "I am sad about the news of a stranger",
        "I want to support someone in my family",
        "I feel alone and look for a group",
        "I need advice on how to talk to a friend",
    ),
    "Ideation": (
        "I think about not being here",
        "I called the helpline about my dark thoughts",
        "I wish that I could just be gone",
        "the thought of leaving it all comes back",
        "I wonder who would miss me",
        "I imagine a world without me",
        "dark thoughts visit me but I made no plan",
        "I told my doctor that I think of an end",
    ),
    "Behavior": (
        "I wrote a note and then hid it",
        "I gave my dear things away in secret",
        "I made a plan and set a day",
        "I said goodbye to my family in a letter",
        "I put my papers in order for after me",
        "I called the helpline with my plan ready",
        "I went to the place and turned back",
        "I asked a friend to keep my cat for good",
    ),
    "Attempt": (
        "I wrote a note and was found by a friend",
        "I woke up in hospital after that night",
        "the ambulance came for me in spring",
        "my family sat by my hospital bed",
        "I survived it and told my doctor",
        "a stranger saved me last year",
        "that night I went through with my plan",
        "I came home from hospital after what I did",
    ),
}

_STRESSORS = {
    "Work": (
        "my boss wants the report by tonight",
        "I have double shifts all week",
        "my office may close this year",
        "a client called me angry again",
        "I was passed over for the promotion",
        "the project at the office is late",
        "my boss reads every mail of mine",
        "I bring my laptop to bed for the report",
    ),
    "Health": (
        "my back hurts whenever I sit",
        "I wait for the results of a scan",
        "my headaches came back this year",
        "the new pills make me tired",
        "I may need surgery on my knee",
        "my blood pressure is high again",
        "the pain wakes me whenever I turn",
        "the doctor wants a second scan",
    ),
    "School": (
        "my exam is on Monday morning",
        "I failed the maths test again",
        "my essay is due by tonight",
        "the teacher moved the test to Monday",
        "I do not follow the lecture at all",
        "my grades went down this year",
        "I have three exams in one week",
        "my thesis has no results so far",
    ),
    "Family": (
        "my parents argue every evening",
        "my brother does not talk to me",
        "my mother wants me to move back",
        "my son is angry with all of us",
        "my parents do not accept my partner",
        "my father drinks again this year",
        "we care for my grandmother at home",
        "my daughter moved out after we argued",
    ),
    "Financial": (
        "the rent is due on Monday",
        "I cannot pay the bill this week",
        "my savings are gone this year",
        "the bank wants the loan back",
        "my card was refused at the shop",
        "the repair costs more than I have",
        "I owe money to three people",
        "prices went up and my pay did not",
    ),
    "Social": (
        "my friends meet without me",
        "nobody talks to me at parties",
        "I do not know anyone in this town",
        "my best friend does not answer me",
        "I never know what to say to people",
        "the group made fun of my voice",
        "I was not asked to the wedding",
        "people at parties look past me",
    ),
    "Emotional Turmoil": (
        "I cry and do not know why",
        "my mood turns within one hour",
        "I am angry with myself all week",
        "I miss him and hate that I do",
        "old memories come back at night",
        "I feel numb and then too much",
        "my fear comes back without a reason",
        "I blame myself for the break up",
    ),
    "Everyday Decision": (
        "I cannot choose between two flats",
        "I do not know which phone to buy",
        "I wonder what to cook this week",
        "I cannot decide on a colour for the wall",
        "I do not know whether to take the bus or walk",
        "I cannot pick a date for the trip",
        "I wonder which shoes to wear on Monday",
        "I cannot choose a name for the dog",
    ),
    "Other": (
        "the neighbour plays loud music at night",
        "my flight was moved again",
        "the news from abroad worries me",
        "the street is dug up this year",
        "my dog ran off this week",
        "the heating broke on Monday morning",
        "the storm took part of the roof",
        "the internet is down again",
    ),
}

CUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Stress-Synthetic": _STRESS,
    "Depression-Synthetic": _DEPRESSION,
    "Risk-Synthetic": _RISK,
    "Stressor-Synthetic": _STRESSORS,
}
