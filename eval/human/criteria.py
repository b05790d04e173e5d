"""The questions of a study. Every one is asked so that the better picture is chosen: no answer needs inverting."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """One question on two pictures (`pair`) or on one (`grade`), what it is about, and the meaning of grades 1 to 5."""

    name: str
    pair: str
    grade: str
    about: str
    anchors: tuple[str, str, str, str, str]


CRITERIA = {
    one.name: one
    for one in (
        Criterion(
            "relevance",
            "Which picture matches the description better?",
            "How well does the picture match the description?",
            "Only what the description asks for counts: the things, how many, their colours, where they are. A plain "
            "picture of exactly that wins over a fine picture of something else.",
            (
                "shows nothing of the description",
                "shows little of it",
                "shows about half of it",
                "shows nearly all of it, a detail is wrong or missing",
                "shows all of it",
            ),
        ),
        Criterion(
            "aesthetics",
            "Which picture looks better, whatever the description says?",
            "How good does the picture look, whatever the description says?",
            "Composition, colours and light. Do not read the description for this one.",
            ("ugly", "rather poor", "neither good nor bad", "good", "beautiful"),
        ),
        Criterion(
            "complexity",
            "Which picture is richer in detail?",
            "How rich in detail is the picture?",
            "How much there is to see: things, textures, background. Noise and clutter are no detail.",
            ("almost empty", "little detail", "some detail", "rich in detail", "very rich, down to small things"),
        ),
        Criterion(
            "defects",
            "Which picture has fewer defects?",
            "How free of defects is the picture?",
            "Broken shapes, wrong limbs, smeared or garbled parts, seams, unreadable text. Choose the cleaner picture: "
            "fewer and smaller defects win.",
            (
                "defects spoil the whole picture",
                "large defects",
                "a clear defect, or several small ones",
                "a small defect on a close look",
                "no defect to be seen",
            ),
        ),
        Criterion(
            "preference",
            "Which picture would you choose overall?",
            "How good is the picture overall as an answer to the description?",
            "All things together: which one would you keep, if you had asked for it?",
            ("useless", "poor", "acceptable", "good", "excellent"),
        ),
    )
}
TAGS = ("hands", "faces", "text", "geometry", "artefact", "watermark")
TAGGED = "tags"  # stands in place of a criterion where the defects of a picture are named
