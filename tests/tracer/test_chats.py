"""Conversations: the forms that data sets have, what a chat template writes, and which tokens are answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fxprune.ir.errors import RequestError
from fxprune.runtime.model.training_rows import IGNORED
from fxprune.tracer.texts.corpus import Text, load_text
from fxprune.tracer.texts.several import joined

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A head, the text and a token at the end of every turn, as ChatML has them."""

BARE = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
    " {{ m.content }} </s>{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
"""No prompt for an answer, and no other roles, as Llama 2 has it."""

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
"""Nothing but text: neither a prompt for an answer nor a token at its end."""

THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' and loop.last %}<think>\n</think>\n"
    "{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Something before the text of the last turn alone, as Qwen 3 has it."""

MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}\n{% else %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
)
"""What the model writes is marked."""

COUNTING = "{% for m in messages %}{{ messages | length }}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
"""Earlier turns change when others follow."""

NAMES = ("<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")


def chat_tokenizer(template: str | None = TURNS) -> PreTrainedTokenizerFast:
    """A token per byte, and one for each name of a turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(NAMES))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def said(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


TWO = said(user("hi"), assistant("hello"), user("a?"), assistant("é 漢!"))


def rows(path: Path, *given: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return str(path)


def loaded(tmp_path: Path, *given: object, template: str | None = TURNS, **options: Any) -> Text:
    return load_text(rows(tmp_path / "a.jsonl", *given), chat_tokenizer(template), **options)


def answers(text: Text, length: int = 1000, train_on: str = "auto") -> list[list[str]]:
    """Of every example the stretches of tokens that count, decoded. The other tokens have no label at all."""
    found = []
    for example in text.examples(length, train_on):
        stretches: list[list[int]] = [[]]
        for token, label in zip(example["input_ids"], example["labels"], strict=True):
            assert label in (IGNORED, token)
            if label != IGNORED:
                stretches[-1].append(token)
            elif stretches[-1]:
                stretches.append([])
        found.append([text.tokenizer.decode(part) for part in stretches if part])
    return found


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (TURNS, ["hello<|end|>", "é 漢!<|end|>"]),
        (BARE, ["hello </s>", "é 漢! </s>"]),
        (PLAIN, ["hello\n", "é 漢!\n"]),
        (THINKING, ["hello<|end|>", "<think>\n</think>\né 漢!<|end|>"]),
        (MARKED, ["hello<|end|>", "é 漢!<|end|>"]),
    ],
    ids=["turns", "bare", "plain", "thinking", "marked"],
)
def test_answers_alone_have_labels(tmp_path: Path, template: str, wanted: list[str]) -> None:
    text = loaded(tmp_path, TWO, template=template)
    whole = chat_tokenizer(template).apply_chat_template(TWO["messages"], return_dict=False)
    assert [example["input_ids"] for example in text.examples(1000)] == [whole], "no token is added or lost"
    assert answers(text) == [wanted]
    assert answers(text, train_on="answers") == [wanted]
    assert text.examples(1000, "all") == [{"input_ids": whole, "labels": whole}]


def test_marked_answers_are_those_of_transformers(tmp_path: Path) -> None:
    text = loaded(tmp_path, TWO, template=MARKED)
    made = chat_tokenizer(MARKED).apply_chat_template(
        TWO["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    (example,) = text.examples(1000)
    assert [int(label != IGNORED) for label in example["labels"]] == made["assistant_masks"]


def test_a_token_that_begins_before_an_answer_is_one_of_it() -> None:
    """Where a token holds the end of the prompt and the begin of the answer, it is what the model has to write."""
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["x hel"])
    text = Text("t", ("a: x hello",), tokenizer, whole=False, answers=(((5, 10),),), read_from={"format": "prompt"})
    (example,) = text.examples(100)
    assert tokenizer.decode([i for i in example["labels"] if i != IGNORED]) == "x hello"


FORMS: list[tuple[dict[str, Any], list[str]]] = [
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, ["hi", "yo"]),
    ({"conversations": [user("hi"), assistant("yo")]}, ["hi", "yo"]),
    ({"conversations": [{"from": "user", "value": "hi"}, assistant("yo")], "system": "be"}, ["be", "hi", "yo"]),
    ({"messages": json.dumps([user("hi"), assistant("yo")])}, ["hi", "yo"]),
    ({"messages": [user("hi"), {"role": "assistant", "content": [{"type": "text", "text": "yo"}]}]}, ["hi", "yo"]),
    ({"messages": [{**user("hi"), "tool_calls": None}, {**assistant("yo"), "name": None}]}, ["hi", "yo"]),
    ({"prompt": "hi", "completion": "yo"}, ["hi", "yo"]),
    ({"prompt": [user("hi")], "completion": [assistant("yo")]}, ["hi", "yo"]),
    ({"prompt": "hi", "response": "yo"}, ["hi", "yo"]),
    ({"instruction": "hi", "input": "", "output": "yo"}, ["hi", "yo"]),
    ({"instruction": "hi", "input": "you", "output": "yo"}, ["hi\n\nyou", "yo"]),
    ({"messages": [user("hi"), assistant("yo")], "text": "no", "prompt": "no"}, ["hi", "yo"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "contents"), FORMS)
def test_every_form_is_written_by_the_chat_template(tmp_path: Path, row: dict[str, Any], contents: list[str]) -> None:
    text = loaded(tmp_path, row)
    roles = ["system"] * (len(contents) - 2) + ["user", "assistant"]
    assert text.rows == ("".join(f"<|{r}|>\n{c}<|end|>\n" for r, c in zip(roles, contents, strict=True)),)
    assert answers(text) == [["yo<|end|>"]]


def test_without_a_chat_template_a_prompt_and_its_completion_are_one_text(tmp_path: Path) -> None:
    text = loaded(tmp_path, {"prompt": "one and", "completion": " two"}, template=None)
    assert text.rows == ("one and two",)
    assert answers(text) == [[" two</s>"]]
    assert answers(text, train_on="all") == [["one and two</s>"]]


def test_alpaca_without_a_chat_template_counts_all_unless_told(tmp_path: Path) -> None:
    text = loaded(tmp_path, {"instruction": "Add.", "input": "1 and 2", "output": "3"}, template=None)
    ((whole,),) = answers(text)
    assert whole.startswith("Below is")
    assert whole.endswith("### Response:\n3</s>")
    assert answers(text, train_on="answers") == [["3</s>"]]


def test_a_conversation_needs_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="line 1 is a conversation, and the tokenizer of the model has no chat") as e:
        loaded(tmp_path, TWO, template=None)
    assert "chat_template.jinja" in e.value.hint


def test_the_mask_survives_truncation(tmp_path: Path) -> None:
    text = loaded(tmp_path, TWO)
    whole = text.examples(1000)[0]
    for length in range(9, len(whole["input_ids"])):
        (cut,) = text.examples(length)
        assert cut == {name: values[:length] for name, values in whole.items()}


def test_a_row_whose_answer_lies_behind_the_length_is_left_out_and_counted(tmp_path: Path) -> None:
    long = said(user("x" * 50), assistant("late"))
    found = loaded(tmp_path, long, TWO, said(user("alone"))).examples(30)
    assert len(found) == 1
    assert found.left_out(30) == [
        "1 row without an answer left out",
        "1 row left out: no answer begins within 30 tokens (option length)",
    ]
    assert len(loaded(tmp_path, long, TWO, said(user("alone"))).examples(30, "all")) == 3
    with pytest.raises(RequestError, match="has no row with an answer within 30 tokens: 1 row left out") as caught:
        loaded(tmp_path, long).examples(30)
    assert "larger length" in caught.value.hint


def test_rows_are_asked_for_an_answer_before_they_are_needed(tmp_path: Path) -> None:
    asked = said(user("alone"))
    text = loaded(tmp_path, asked, asked)
    text.check_examples(30, "all")
    for refused in (text.check_examples, text.examples):
        with pytest.raises(RequestError, match="has no row with an answer, and answers alone are trained on") as caught:
            refused(30)  # type: ignore[operator]
        assert "--train-on all" in caught.value.hint
        assert "length" not in caught.value.hint
    with pytest.raises(RequestError, match="has no row with an answer within 4 tokens"):
        loaded(tmp_path, asked, TWO).check_examples(4)
    some = loaded(tmp_path, asked, TWO)
    joined("both", [some, some]).check_examples(30, "answers")
    with pytest.raises(RequestError, match="has no row with an answer"):
        joined("both", [some, text]).check_examples(30)


def test_a_chat_that_ends_with_a_question_counts_its_earlier_answers(tmp_path: Path) -> None:
    assert answers(loaded(tmp_path, said(user("hi"), assistant("yo"), user("and?")))) == [["yo<|end|>"]]


def test_an_assistant_that_begins(tmp_path: Path) -> None:
    assert answers(loaded(tmp_path, said(assistant("welcome"), user("hi")))) == [["welcome<|end|>"]]


def test_tools(tmp_path: Path) -> None:
    template = (
        "{% if tools %}{{ tools[0].function.name }}\n{% endif %}{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments.city }}"
        "{% endfor %}{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    row = said(
        {"role": "system", "content": "s"},
        user("?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sun"},
        assistant("sunny"),
        tools=[{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    )
    text = loaded(tmp_path, row, template=template)
    assert text.rows[0].startswith("weather\n<|system|>s<|end|>")
    assert answers(text) == [["weather Rome<|end|>", "sunny<|end|>"]]


def test_windows_of_conversations_follow_one_another_without_anything_between(tmp_path: Path) -> None:
    text = loaded(tmp_path, TWO, TWO)
    ids = chat_tokenizer().apply_chat_template(TWO["messages"], return_dict=False)
    assert text.ids.tolist() == [*ids, *ids]


def test_a_field_may_hold_a_conversation_or_a_question_and_its_answer(tmp_path: Path) -> None:
    nested = {"meta": {"chat": [user("hi"), assistant("yo")]}, "q": "hi", "a": "yo"}
    for field in ("meta.chat", "q,a"):
        assert answers(loaded(tmp_path, nested, field=field)) == [["yo<|end|>"]]


def test_files_of_several_formats_are_one_text(tmp_path: Path) -> None:
    chats, tokenizer = loaded(tmp_path, TWO), chat_tokenizer()
    (tmp_path / "b.csv").write_text("text\nplain\n", encoding="utf-8")
    both = joined("both", [chats, load_text(str(tmp_path / "b.csv"), tokenizer)])
    assert answers(both) == [["hello<|end|>", "é 漢!<|end|>"], ["plain"]]
    assert both.ids.tolist() == [*chats.ids.tolist(), *tokenizer.encode("plain", add_special_tokens=False)]
    with pytest.raises(RequestError, match=r"b.csv' is rows of `text`, which has no answers to train on alone"):
        both.examples(100, "answers")


NOTHING_SAID: list[dict[str, Any]] = [
    said(),
    {"messages": ""},
    {"messages": "[]"},
    said(tools=[{"type": "function"}]),
    said(user(""), assistant(" ")),
    said({"role": "user", "content": None}),
    said({"role": "user", "content": []}, {"role": "assistant", "content": [{"type": "text", "text": ""}]}),
]


@pytest.mark.parametrize("row", NOTHING_SAID)
def test_a_conversation_in_which_nothing_is_said_is_left_out_and_counted(tmp_path: Path, row: dict[str, Any]) -> None:
    for rows_ in ((row, TWO), (TWO, row)):
        text = loaded(tmp_path, *rows_)
        assert text.rows == loaded(tmp_path, TWO).rows
        assert (text.read_from["format"], text.read_from["nulls"]) == ("messages", 1)
        assert answers(text) == [["hello<|end|>", "é 漢!<|end|>"]]


def test_other_forms_in_which_nothing_is_said_too(tmp_path: Path) -> None:
    share = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "system": None}
    empty = {"from": "human", "value": ""}
    text = loaded(tmp_path, {"conversations": []}, share, {"conversations": [empty], "system": "be"})
    assert (len(text.rows), text.read_from["nulls"]) == (1, 2)
    pair = {"prompt": "hi", "completion": "yo"}
    for nothing in ({"prompt": "", "completion": " "}, {"prompt": [], "completion": []}):
        text = loaded(tmp_path, nothing, pair)
        assert (len(text.rows), text.read_from["nulls"]) == (1, 1)


def test_a_call_without_a_word_says_something(tmp_path: Path) -> None:
    call = {"function": {"name": "weather", "arguments": "{}"}}
    assert len(loaded(tmp_path, said({"role": "assistant", "content": None, "tool_calls": [call]})).rows) == 1


def test_conversations_in_which_nothing_is_said_alone_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is empty: all of its 2 rows are null or empty"):
        loaded(tmp_path, said(), {"messages": None})
    with pytest.raises(RequestError, match="is empty: its only row is null or empty"):
        loaded(tmp_path, said())


ERRORS: list[tuple[dict[str, Any], str, str]] = [
    (said(user("hi"), {"role": "narrator", "content": "so"}), TURNS, "1, message 2: the role 'narrator' is none of"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, TURNS, "message 1 is from 'alien', who is none of human"),
    (said({"content": "x"}), TURNS, "message 1 has no role; its fields: content"),
    (said({"role": "user", "content": 3}), TURNS, "message 1: its content is not a string but int: 3"),
    (said({"role": "user"}), TURNS, "message 1 has no content; its fields: role"),
    (said({"role": "user", "value": "x"}), TURNS, "message 1 has no content; its fields: role, value"),
    (said(user("x"), {"role": "user", "content": None}), TURNS, "message 2: its content is null"),
    (said({"role": "user", "content": ["x"]}), TURNS, 'message 1: its content is not a string but list: ["x"]'),
    (said({"role": 3, "content": "x"}), TURNS, "message 1: the role int: 3 is none of system"),
    (said({"role": ["user"], "content": "x"}), TURNS, 'message 1: the role list: ["user"] is none of system'),
    (said({"role": None, "content": "x"}), TURNS, "message 1: its role is null"),
    (said({}), TURNS, "message 1 has no role; its fields: none"),
    (said({"role": "narrator", "content": ""}), TURNS, "message 1: the role 'narrator' is none of"),
    ({"conversations": [{"from": "human"}]}, TURNS, "message 1 has no value; its fields: from"),
    ({"conversations": [{"from": "human", "content": "x"}]}, TURNS, "1 has no value; its fields: from, content"),
    ({"conversations": [{"from": "human", "value": 3}]}, TURNS, "message 1: its value is not a string but int: 3"),
    ({"conversations": [{"from": ["gpt"], "value": "x"}]}, TURNS, 'message 1 is from list: ["gpt"], who is none of'),
    ({"conversations": [{"from": None, "value": "x"}]}, TURNS, "message 1: its from is null"),
    (said({"role": "user", "content": [{"type": "image"}]}), TURNS, "message 1 holds 'image', and only text is read"),
    (said("hi"), TURNS, 'message 1 is not an object but str: "hi"'),
    (said(None), TURNS, "message 1 is not an object but null"),
    ({"messages": "hello"}, TURNS, 'line 1 holds no conversation but str: "hello"'),
    ({"messages": "hello " * 20}, TURNS, 'but str: "hello hello hello hello hello hello ...'),
    ({"messages": {"a": 1}}, TURNS, 'line 1 holds no conversation but dict: {"a": 1}'),
    ({"messages": 0}, TURNS, "line 1 holds no conversation but int: 0"),
    ({"prompt": 3, "completion": "x"}, TURNS, "field 'prompt' is not a string but int: 3"),
    ({"prompt": [user("x")], "completion": "y"}, TURNS, "field 'prompt' is a list, and 'completion' is str: \"y\""),
    ({"prompt": "x", "completion": []}, TURNS, "field 'completion' is a list, and 'prompt' is str: \"x\""),
    (said(user("hi"), tools={"a": 1}), TURNS, "tools is no list but dict: {"),
    (said({"role": "system", "content": "x"}), BARE, "the conversation: TemplateError: only user and assistant"),
    (TWO, COUNTING, "the chat template writes what stands before message 2 in another way when it follows"),
    (TWO, "\n{{ messages", "the chat template in the tokenizer of the model is broken: TemplateSyntaxError: "),
    (TWO, "{{ messages | nofilter }}", "is broken: TemplateAssertionError: No filter named 'nofilter'."),
]  # fmt: skip


@pytest.mark.parametrize(("row", "template", "message"), ERRORS)
def test_a_conversation_that_cannot_be_written_is_an_error(
    tmp_path: Path, row: dict[str, Any], template: str, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        loaded(tmp_path, row, template=template)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_broken_template_is_not_blamed_on_the_row(tmp_path: Path, file: str) -> None:
    chat_tokenizer("{% for m in messages %}\n{{ m.content }").save_pretrained(
        tmp_path / "model", save_jinja_files=file.endswith("jinja")
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(TWO))
    with pytest.raises(RequestError) as caught:
        load_text(str(tmp_path / "rows.jsonl"), PreTrainedTokenizerFast.from_pretrained(tmp_path / "model"))
    assert f"the chat template in {tmp_path / 'model' / file} is broken: TemplateSyntaxError" in caught.value.message
    assert caught.value.message.endswith("(line 2 of the template)")
    assert "row" not in caught.value.message
    assert caught.value.hint == "correct it, or copy it again; rows with `text` need none"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_chat_template_runs_nothing(tmp_path: Path, template: str) -> None:
    with pytest.raises(RequestError, match="the chat template of the model refuses the conversation"):
        loaded(tmp_path, TWO, template=template)


def test_a_tokenizer_without_places_cannot_tell_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = loaded(tmp_path, TWO)
    monkeypatch.setattr(type(text.tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(RequestError, match="does not say which characters its tokens are of") as caught:
        text.examples(100)
    assert "--train-on all" in caught.value.hint
    assert len(text.examples(100, "all")) == 1
