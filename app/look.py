"""How the page looks: fonts that visitors have for every script, lines set by their own script."""

from typing import Any

#: Noto first, as it covers all 18 languages in one style; then what systems bring for themselves. None is
#: fetched: a page that works offline asks no other host for fonts.
FONTS = (
    "Noto Sans", "system-ui", "-apple-system", "Segoe UI", "Noto Sans Arabic", "Noto Naskh Arabic",
    "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR",
    "sans-serif",
)  # fmt: skip
MONO = ("Noto Sans Mono", "ui-monospace", "monospace")

CSS = """
.gradio-container { width: 100%; }
.gradio-container > .main { width: 100%; max-width: 1180px !important; margin: 0 auto; }
/* Each line of what people write starts on the side of its own script. */
textarea, input[type=text], .ad-told dd, #ad-grid label { unicode-bidi: plaintext; text-align: start; }
/* gradio sets its boxes left to right whatever the page is; a slider's track stays so. */
html[dir=rtl] :is(.block, .block [dir=ltr]) { direction: rtl; }
html[dir=rtl] :is(.slider_input_container, input[type=number], #ad-editor) { direction: ltr; }
html[dir=rtl] input[type=number] { text-align: right; }
html[dir=rtl] label.float { left: auto; right: var(--block-label-margin); }
html[dir=rtl] label.float > span { margin-inline: 0 var(--size-2); }
html[dir=rtl] .icon-button-wrapper.top-panel { right: auto; left: var(--block-label-margin); }
html[dir=rtl] .icon-wrap { right: auto; left: var(--size-4); }
html[dir=rtl] .secondary-wrap input { padding-inline-end: 2rem; }
html[dir=rtl] label > input[type=checkbox] + span { margin-inline: var(--size-2) 0; }
/* gradio heads every refusal "Error", in English; the sign beside it says so too. */
.toast-title.error { font-size: 0; }
#ad-head { align-items: center; flex-wrap: nowrap; }
#ad-tagline p { font-size: 1.15rem; font-weight: 600; margin: 0; }
#ad-language { flex: 0 0 auto; width: 9.5rem; }
#ad-model { opacity: .75; font-size: .85rem; }
.ad-line { margin: 0 0 .25rem; font-variant-numeric: tabular-nums; }
.ad-bar { height: .5rem; border-radius: 99px; background: var(--border-color-primary); overflow: hidden; }
.ad-bar span { display: block; height: 100%; background: var(--primary-500); transition: width .2s; }
.ad-previews { display: flex; gap: .5rem; flex-wrap: wrap; margin-top: .5rem; }
.ad-previews img { width: 160px; max-width: 45%; border-radius: var(--radius-md); }
.ad-kept { display: flex; flex-wrap: wrap; gap: .375rem; margin: .5rem 0; }
.ad-kept button { padding: 2px; border: 1px solid var(--border-color-primary); cursor: pointer;
  border-radius: var(--radius-sm); }
.ad-kept button:focus-visible { outline: 2px solid var(--primary-600); }
.ad-kept img { width: 56px; height: 56px; object-fit: cover; display: block; }
/* gradio lays labels over pictures and keeps empty space below them. */
.grid-wrap { min-height: 0 !important; max-height: none !important; }
.grid-container { padding-top: 2.25rem; }
#ad-grid .image-container, #ad-told > :last-child { padding-top: 2.25rem; }
.caption-label { unicode-bidi: plaintext; }
.ad-tables { display: flex; flex-wrap: wrap; gap: 1.25rem; margin-top: .5rem; }
.ad-tables table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem;
  direction: ltr; }
.ad-tables caption { text-align: start; font-weight: 600; padding-bottom: .25rem; unicode-bidi: plaintext; }
.ad-tables :is(th, td) { border: 1px solid var(--border-color-primary); }
.ad-tables th { padding: .15rem .4rem; font-weight: 500; }
.ad-tables td { padding: .25rem .45rem; text-align: end;
  background: color-mix(in srgb, var(--primary-400) calc(var(--share, 0) * 60%), transparent); }
.ad-tables td[dir] { text-align: start; }
.ad-told { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 0; }
.ad-told dt { font-weight: 600; } .ad-told dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  #ad-head { flex-wrap: wrap; }
  #ad-results .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .ad-told { grid-template-columns: 1fr; }
  /* The link before it is hidden on telephones. */
  footer .divider { display: none; }
}
"""

#: Ctrl-Enter in a box of several lines presses Shift-Enter, which is what gradio submits at.
_KEYS_JS = """
document.addEventListener("keydown", (event) => {
  const box = event.target;
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !box.closest?.(".ad-submits")) return;
  event.preventDefault();
  const fields = { key: "Enter", code: "Enter", shiftKey: true, bubbles: true, cancelable: true };
  box.dispatchEvent(new KeyboardEvent("keypress", fields));
}, true);
"""


def page_js(locale_js: str) -> str:
    """Runs once, on load: the language and direction, and the keys."""
    return f"async () => {{ {_KEYS_JS}; return await ({locale_js.strip()})(); }}"


def theme() -> Any:
    from gradio.themes import Soft

    soft = Soft(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO)
    soft.checkbox_border_color = "*neutral_500"  # was white on white; `set` would whiten the page as well
    return soft
