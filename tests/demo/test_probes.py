from __future__ import annotations

from deltamend.demo.probes import load_probes, load_prose, toy_lessons
from deltamend.evaluation.language_check import answered_in_words


def test_every_question_has_four_different_answers_and_the_right_one_takes_every_place() -> None:
    probes = load_probes()
    for questions in (probes.knowledge, probes.completion):
        assert all(len(set(q.choices)) == 4 for q in questions)
        places = [q.answer for q in questions]
        assert {places.count(place) for place in range(4)} == {len(questions) // 4}


def test_the_chat_prompts_and_the_toys_replies_are_words() -> None:
    lessons = toy_lessons()
    assert tuple(prompt for prompt, _ in lessons) == load_probes().chat
    assert all(answered_in_words(reply) for _, reply in lessons)


def test_the_prose_is_long_enough_to_measure_on() -> None:
    passages = load_prose()
    assert len(passages) == 12
    assert 600 <= sum(len(passage.split()) for passage in passages) <= 1000
