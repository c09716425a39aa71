"""What the checkout must, and must not, hold for the plugin to be found and nothing forgotten."""

import ast
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_twisted_has_no_init_of_ours() -> None:
    # One would hide Twisted itself, the other all plugins but ours.
    assert not (CHECKOUT / "twisted" / "__init__.py").exists()
    assert not (CHECKOUT / "twisted" / "plugins" / "__init__.py").exists()
    assert (CHECKOUT / "twisted" / "plugins" / "msgservice_plugin.py").exists()


def test_setup_lists_every_package() -> None:
    (call,) = [
        node
        for node in ast.walk(ast.parse((CHECKOUT / "setup.py").read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "setup"
    ]
    said = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    found = [
        ".".join(init.parent.relative_to(CHECKOUT).parts)
        for init in (CHECKOUT / "msgservice").rglob("__init__.py")
    ]
    assert sorted([*found, "twisted.plugins"]) == sorted(said["packages"])
    assert {"": "."} == said["package_dir"]  # without it, an editable install hides the plugin
