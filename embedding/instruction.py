"""What is put before a text: a prompt for each role, with the task's instruction in it."""

from typing import Literal

from embedding.config import Config

Role = Literal["query", "document"]


class Template(Config):
    """The prompts of a model. A prompt is a plain prefix, so that sentence-transformers and servers can apply it too.

    Defaults: the form of the Harrier-OSS-v1 model card, `Instruct: {task}\\nQuery: {text}` on the query side and bare
    documents (mteb's loader of the same model has no space after `Query:`, hence a setting). Other families fit as
    well: `Template(query="query: ", document="passage: ")` is E5's.
    """

    query: str = "Instruct: {task}\nQuery: "
    document: str = ""

    def prompt(self, role: Role, task: str = "") -> str:
        """The prefix for a text in a role. A prompt that wants a task is left out whole when there is none."""
        prompt = self.query if role == "query" else self.document
        if "{task}" not in prompt:
            return prompt
        return prompt.replace("{task}", task) if task else ""


BARE = Template(query="", document="")
