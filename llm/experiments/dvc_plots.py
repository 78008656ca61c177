"""A page for `dvc plots` that contains its scripts, which DVC by default loads from a CDN.

`.dvc/config.local` names the page.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from llm.errors import UserError
from llm.runtime.io import write_bytes

TEMPLATE = Path("tmp/plots.html")  # in .dvc, which git ignores there
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>DVC plots</title>
<script>SCRIPTS</script>
<style>
body { font-family: system-ui, sans-serif; margin: 1rem auto; max-width: 75rem; }
body { display: flex; flex-wrap: wrap; gap: 1rem; }
body > div { overflow-x: auto; }
</style>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def page() -> str:
    """Return the page with Vega, Vega-Lite, Vega-Embed and DVC's placeholders for the plots."""
    import vl_convert

    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return PAGE.replace("SCRIPTS", scripts.replace("</script", "<\\/script"))


def use_offline_page() -> None:
    """Write the page into `.dvc/tmp` and make DVC use it in this repository.

    Raises:
        UserError: the current directory is not the top of a DVC repository.
    """
    if not Path(".dvc").is_dir():
        raise UserError(
            "There is no .dvc here: run this at the top of the repository, where dvc.yaml is."
        )
    path = Path(".dvc") / TEMPLATE
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, page().encode())
    subprocess.run(
        ["dvc", "config", "--local", "plots.html_template", TEMPLATE.as_posix()], check=True
    )
