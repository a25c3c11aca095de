(() => {
  "use strict";
  const STEP = 20;
  const rows = JSON.parse(document.getElementById("rows-data").textContent);
  const at = (id) => document.getElementById(id);
  const search = at("search"), category = at("category"), part = at("part"), list = at("rows-list"), more = at("more");
  let shown = STEP;

  // Texts become text nodes only; nothing that a row says is ever read as HTML.
  const make = (tag, options, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(options || {})) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };

  const marked = (text, wanted) => {
    const result = document.createDocumentFragment();
    const lower = text.toLowerCase();
    let from = 0;
    // Some letters change their length in lower case; marks would then sit beside the words, so they are left out.
    while (wanted && lower.length === text.length) {
      const found = lower.indexOf(wanted, from);
      if (found < 0) break;
      result.append(text.slice(from, found), make("mark", {}, text.slice(found, found + wanted.length)));
      from = found + wanted.length;
    }
    result.append(text.slice(from));
    return result;
  };

  const negative = (item, wanted) => {
    const said = [item.miner, item.difficulty === null ? null : `difficulty ${item.difficulty}`, item.score === null ? null : `score ${item.score}`];
    const width = Math.round(100 * Math.min(1, Math.max(0, item.difficulty || 0)));
    return make("li", {},
      make("div", { class: "said quiet small" },
        make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: `width:${width}%` })),
        said.filter(Boolean).join(" · ")),
      make("p", { class: "text", dir: "auto" }, marked(item.text, wanted)));
  };

  const card = (row, wanted) => {
    const facts = make("dl", { class: "facts" });
    for (const [name, value] of [...Object.entries(row.facts), ...Object.entries(row.provenance), ["row_id", row.id]]) {
      facts.append(make("dt", {}, name), make("dd", { class: name.endsWith("_id") ? "mono" : "", dir: "auto" }, String(value)));
    }
    const chips = [row.category, row.part, row.facts.language].filter(Boolean);
    const count = row.negatives.length + row.more_negatives;
    const negatives = make("details", wanted && row.negatives.some((item) => item.text.toLowerCase().includes(wanted)) ? { open: "" } : {},
      make("summary", {}, `${count} hard negative${count === 1 ? "" : "s"}`),
      make("ol", {}, ...row.negatives.map((item) => negative(item, wanted))),
      row.more_negatives ? make("p", { class: "quiet small" }, `and ${row.more_negatives} more`) : null);
    return make("article", { class: "card row" },
      make("ul", { class: "chips" }, ...chips.map((text) => make("li", {}, text))),
      make("h3", { class: "text query", dir: "auto" }, marked(row.query, wanted)),
      make("p", { class: "label" }, "positive"),
      make("div", { class: "text clip", dir: "auto", tabindex: "0", role: "group", "aria-label": "positive" }, marked(row.positive, wanted)),
      count ? negatives : null,
      make("details", {}, make("summary", {}, "where it came from"), facts));
  };

  const matches = (row, wanted) =>
    (!category.value || row.category === category.value) &&
    (!part.value || row.part === part.value) &&
    (!wanted || [row.query, row.positive, row.id, row.facts.label || "", ...row.negatives.map((item) => item.text)]
      .some((text) => text.toLowerCase().includes(wanted)));

  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    const found = rows.filter((row) => matches(row, wanted));
    list.replaceChildren(...found.slice(0, shown).map((row) => card(row, wanted)));
    at("rows-status").textContent = `${Math.min(shown, found.length)} of ${found.length} rows shown`;
    more.hidden = shown >= found.length;
  };

  for (const name of [...new Set(rows.map((row) => row.category))].sort()) {
    category.append(make("option", { value: name }, `${name} (${rows.filter((row) => row.category === name).length})`));
  }
  const restart = () => { shown = STEP; show(); };
  search.addEventListener("input", restart);
  category.addEventListener("change", restart);
  part.addEventListener("change", restart);
  more.addEventListener("click", () => {
    const first = shown;
    shown += STEP;
    show();
    const next = list.children[first];
    if (next) { next.setAttribute("tabindex", "-1"); next.focus({ preventScroll: true }); }
  });
  show();
})();
