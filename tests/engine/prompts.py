"""Prompts of different lengths and languages."""

_STORY = (
    "The lighthouse keeper climbed the stairs every evening at dusk, counted the steps aloud, and lit the lamp. "
    "One night the count came out wrong. "
)

PROMPTS = [
    "Hi",
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain what a hash table is to a child.",
    "Quelle est la capitale de l'Espagne ?",
    "¿Cuántos días tiene un año bisiesto?",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "日本の首都はどこですか？",
    "Какая самая длинная река в мире?",
    "ما هي عاصمة مصر؟",
    "भारत की राजधानी क्या है?",
    "def fibonacci(n):\n    '''Return the n-th Fibonacci number.'''\n",
    "SELECT name, COUNT(*) FROM orders GROUP BY",
    '{"name": "Ada", "born": 1815, "languages": [',
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "Summarise:\n" + _STORY * 3,
    "Summarise in one sentence:\n" + _STORY * 12,
    "List three colours.\n\n\n   \t and three fruits",
    "😀 What does this emoji mean? 👩‍👩‍👧‍👦",
    "Translate to French: 'The cat sat on the mat, and the dog looked at the moon.' " * 4,
    _STORY * 30 + "What was wrong that night?",
]

CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
