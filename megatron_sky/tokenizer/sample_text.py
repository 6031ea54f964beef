"""A few passages of the kinds that the model is trained on, for comparing tokenizers and logits."""

SAMPLES = (
    "The river rises in the hills north of the town and reaches the sea after a hundred kilometres. In spring, when "
    "the snow melts, it floods the meadows on both banks; farmers have lived with that since the thirteenth century.",
    "这条河发源于城北的山地，流经一百公里后入海。每年春天积雪融化的时候，河水会漫过两岸的草地，当地的农民早已习惯了这样的生活。",
    "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)  # fails on an empty list\n",
    "Let f(x) = x^2 - 4x + 3. Then f(x) = 0 for x = 1 and x = 3, and the minimum f(2) = -1 lies between them. "
    "因此方程有两个实根。",
    "  两个  spaces,\ttabs,\n\nblank lines, 1234567890, naïve café, emoji 🙂, кириллица, 日本語、한국어 <b> & ©",
)
