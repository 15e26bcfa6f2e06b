"""Questions that anybody might ask: forms, and what fills them. A teacher's answers teach how it answers."""

from collections.abc import Iterator

#: of things, of which there is more to say than of what somebody does
ABOUT_THINGS = (
    "What is {thing}?",
    "Explain {thing} in simple terms.",
    "Explain {thing} to a ten-year-old.",
    "Tell me about {thing}.",
    "Why does {thing} matter?",
    "Give me three facts about {thing}.",
    "List the main points one should know about {thing}.",
    "Write one paragraph on {thing}.",
    "Write a short poem about {thing}.",
    "Write a short story in which {thing} plays a part.",
    "What are common misconceptions about {thing}?",
    "How would you teach {thing} in a single lesson?",
    "Summarise the history of {thing}.",
    "I have an exam on {thing} tomorrow. What should I revise?",
    "What questions would an expert ask about {thing}?",
    "Write an introduction for an article on {thing}.",
    "What are good and bad sides of {thing}?",
    "Which books or sources would you suggest on {thing}, and why?",
    "Make up a dialogue between two friends about {thing}.",
    "Describe {thing} without using technical words.",
    "How has {thing} changed in the last hundred years?",
    "Suggest a title and an outline for a talk about {thing}.",
)
#: of what somebody does, as "bake bread"
ABOUT_DEEDS = (
    "How do I {deed}?",
    "What do I need to {deed}?",
    "Give me step-by-step instructions to {deed}.",
    "What is the best way to {deed} on a small budget?",
    "What mistakes do beginners make when they {deed}?",
    "I want to {deed}, but I have little time. What do you advise?",
    "Write a checklist for somebody who wants to {deed}.",
    "Write an e-mail to a friend who asked you how to {deed}.",
    "How long does it take to {deed}?",
    "Convince me that I should {deed}.",
    "My sister wants to {deed}. What should I tell her?",
    "Plan a week for me in which I {deed}.",
)
THINGS = (
    *("photosynthesis", "gravity", "the water cycle", "evolution", "the immune system", "DNA", "electricity"),
    *("plate tectonics", "black holes", "the solar system", "vaccines", "the human heart", "sleep", "memory"),
    *("climate change", "renewable energy", "nuclear power", "the ozone layer", "earthquakes", "volcanoes", "tides"),
    *("the Roman Empire", "the French Revolution", "the Industrial Revolution", "the printing press", "the Silk Road"),
    *("ancient Egypt", "the Renaissance", "the moon landing", "the Great Wall of China", "the Vikings", "democracy"),
    *("inflation", "supply and demand", "compound interest", "the stock market", "insurance", "taxes", "globalisation"),
    *("machine learning", "the internet", "cloud computing", "encryption", "databases", "open-source software"),
    *("operating systems", "recursion", "object-oriented programming", "version control", "unit tests", "compilers"),
    *("sorting algorithms", "hash tables", "computer networks", "robotics", "3D printing", "smartphones", "satellites"),
    *("jazz", "classical music", "the piano", "the violin", "opera", "film", "photography", "impressionism", "poetry"),
    *("Shakespeare's plays", "science fiction", "fairy tales", "Greek mythology", "philosophy", "stoicism", "ethics"),
    *("football", "chess", "swimming", "yoga", "marathon running", "the Olympic Games", "mountain climbing", "cycling"),
    *("coffee", "tea", "chocolate", "bread", "cheese", "rice", "olive oil", "honey", "spices", "vegetarian food"),
    *(
        "dogs",
        "cats",
        "bees",
        "whales",
        "elephants",
        "butterflies",
        "dinosaurs",
        "penguins",
        "sharks",
        "migrating birds",
    ),
    *("rainforests", "deserts", "coral reefs", "rivers", "the Arctic", "mushrooms", "trees", "gardens", "farming"),
    *("Japan", "Brazil", "India", "Italy", "Kenya", "Canada", "Australia", "Mexico", "Norway", "Egypt", "Greece"),
    *("bicycles", "trains", "bridges", "skyscrapers", "aeroplanes", "ships", "clocks", "maps", "calendars", "money"),
    *("prime numbers", "probability", "fractions", "geometry", "statistics", "algebra", "infinity", "logic"),
    *("teamwork", "leadership", "friendship", "patience", "creativity", "curiosity", "stress", "happiness", "habits"),
    *("remote work", "public transport", "social media", "advertising", "libraries", "museums", "schools", "hospitals"),
)
DEEDS = (
    *("bake bread", "learn a new language", "save money", "write a cover letter", "prepare for a job interview"),
    *(
        "grow tomatoes",
        "fix a flat tyre",
        "start a small business",
        "lose weight",
        "sleep better",
        "run ten kilometres",
    ),
    *(
        "learn to play the guitar",
        "paint a room",
        "plan a wedding",
        "organise a birthday party",
        "pack for a long trip",
    ),
    *("write a novel", "give a speech", "study for exams", "learn to program", "build a website", "back up my files"),
    *("choose a laptop", "clean a kitchen", "cook rice", "make a good cup of coffee", "train a puppy", "adopt a cat"),
    *("build a bookshelf", "read more books", "meditate", "make new friends", "apologise to a colleague"),
    *("negotiate a salary", "manage my time", "keep a diary", "start composting", "use less plastic", "repair a zip"),
    *(
        "teach children to read",
        "learn to draw",
        "take better photographs",
        "visit Rome for three days",
        "plant a tree",
    ),
    *("solve a quadratic equation", "convert miles to kilometres", "calculate a percentage", "debug a Python script"),
    *(
        "sort a list in Python",
        "read a file in Python",
        "merge two Git branches",
        "write a unit test",
        "set up a printer",
    ),
    *("protect my password", "recognise a scam", "write a thank-you note", "ask for feedback", "run a meeting"),
)


def everyday_questions() -> Iterator[str]:
    """All of them: every form with everything that fills it."""
    for form in ABOUT_THINGS:
        yield from (form.format(thing=thing) for thing in THINGS)
    for form in ABOUT_DEEDS:
        yield from (form.format(deed=deed) for deed in DEEDS)
