"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const matrices = data.matrices;
  const $ = (id) => document.getElementById(id);
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const drawn = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits))));
  const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

  // Light and dark: the system's choice until the button is pressed.
  const theme = $("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // The map.
  const measures = [
    { name: "fit", value: (m) => m.ks, show: (v) => v.toFixed(2), full: 0.3, explanation: "KS distance of the values up to τ to the law of noise: 0 is noise, full colour from 0.3 on." },
    { name: "rank", value: (m) => (m.rank === null ? null : m.rank / Math.min(m.rows, m.columns)), show: (v) => `${Math.round(100 * v)}%`, full: 1, explanation: "Share of the singular values that DG-Hard keeps." },
    { name: "energy", value: (m) => m.energy, show: (v) => `${Math.round(100 * v)}%`, full: 1, explanation: "Share of ‖Δ‖² that DG-Hard keeps." },
    { name: "rounding", value: (m) => m.rounding_share, show: (v) => (v > 9.99 ? ">999%" : `${Math.round(100 * v)}%`), full: 1, explanation: "ulp²/12 of the stored dtype relative to the variance of the bulk: from 100% on, rounding explains all of it." },
  ];
  const layers = [...new Set(matrices.map((m) => m.layer))].sort((a, b) => (a ?? -1) - (b ?? -1));
  const modules = [...new Set(matrices.filter((m) => m.layer !== null).map((m) => m.module))];
  const outside = matrices.filter((m) => m.layer === null);
  const cells = new Map();
  const heat = $("heat");
  const cellFor = (index) => {
    const button = element("button", "", { type: "button", tabindex: "-1" });
    button.addEventListener("click", () => select(index));
    cells.set(index, button);
    return button;
  };
  const at = new Map(matrices.map((m, index) => [JSON.stringify([m.layer, m.module]), index]));
  const head = heat.createTHead().insertRow();
  head.append(element("th", "layer", { scope: "col" }), ...modules.map((m) => element("th", m.split(".").pop(), { scope: "col", title: m })));
  const body = heat.createTBody();
  for (const layer of layers) {
    if (layer === null) continue;
    const row = body.insertRow();
    row.append(element("th", String(layer), { scope: "row" }));
    for (const module of modules) {
      const index = at.get(JSON.stringify([layer, module]));
      const cell = row.insertCell();
      if (index !== undefined) cell.append(cellFor(index));
    }
  }
  outside.forEach((m) => {
    const row = body.insertRow();
    row.append(element("th", m.module.split(".").pop().slice(0, 24), { scope: "row", title: m.name }));
    row.insertCell().append(cellFor(matrices.indexOf(m)));
  });
  const paint = (measure) => {
    $("explanation").textContent = measure.explanation;
    for (const button of $("measures").children) button.setAttribute("aria-pressed", String(button.dataset.name === measure.name));
    for (const [index, button] of cells) {
      const value = measure.value(matrices[index]);
      const x = value === null ? 0 : Math.max(0, Math.min(1, value / measure.full));
      button.textContent = value === null ? "–" : measure.show(value);
      button.style.setProperty("--x", x.toFixed(3));
      button.classList.toggle("strong", x > 0.68);
      button.setAttribute("aria-label", `${matrices[index].name}: ${measure.name} ${button.textContent}`);
      button.title = matrices[index].name;
    }
  };
  for (const measure of measures) {
    const button = element("button", measure.name, { type: "button", "data-name": measure.name });
    button.addEventListener("click", () => paint(measure));
    $("measures").append(button);
  }
  heat.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    const cell = event.target.closest("td");
    if (!move || !cell) return;
    event.preventDefault();
    const row = cell.parentElement;
    const next = heat.rows[row.rowIndex + move[0]]?.cells[cell.cellIndex + move[1]]?.querySelector("button");
    if (next) next.focus();
  });

  // One matrix.
  const line = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const axes = (svg, box, xs, ys) => {
    svg.replaceChildren(drawn("rect", { class: "frame", x: box.left, y: box.top, width: box.width, height: box.height }));
    for (const [position, text] of xs) svg.append(drawn("text", { x: position, y: box.top + box.height + 14, "text-anchor": "middle" }, text));
    for (const [position, text] of ys) svg.append(drawn("text", { x: box.left - 4, y: position + 4, "text-anchor": "end" }, text));
  };
  const spectrum = (m) => {
    const svg = $("spectrum");
    svg.replaceChildren();
    $("spectrum-caption").textContent = "";
    if (!m.histogram) return;
    const { high, counts, above } = m.histogram;
    const box = { left: 34, top: 22, width: 516, height: 186 };
    const width = high / counts.length;
    const law = [];
    let top = Math.max(...counts, 1);
    if (m.bulk) {
      // In units of s√n the edges are 1 ∓ √β.
      const [low, up] = m.bulk.edges;
      const scale = (low + up) / 2, beta = ((up - low) / (up + low)) ** 2;
      for (let step = 0; step <= 160; step += 1) {
        const y = low + ((up - low) * step) / 160;
        const unit = Math.max(y / scale, 1e-9);
        const inside = Math.max(0, ((up / scale) ** 2 - unit ** 2) * (unit ** 2 - (low / scale) ** 2));
        const density = Math.sqrt(inside) / (Math.PI * beta * unit) / scale;
        law.push([y, density * m.bulk.size * width]);
      }
      const inner = law.map((point) => point[1]).filter(Number.isFinite);
      top = Math.max(top, ...inner);
    }
    const x = (value) => box.left + (box.width * value) / high;
    const y = (value) => box.top + box.height * (1 - value / (1.05 * top));
    axes(svg, box, [0, 0.25, 0.5, 0.75, 1].map((part) => [x(part * high), number(part * high)]), [[y(0), "0"], [y(top), String(Math.round(top))]]);
    counts.forEach((count, index) => svg.append(drawn("rect", { class: "bars", x: x(index * width) + 0.5, y: y(count), width: Math.max(0.5, x(width) - x(0) - 1), height: Math.max(0, y(0) - y(count)) })));
    if (law.length) svg.append(drawn("path", { class: "law", d: line(law.map(([a, b]) => [x(a), y(b)])) }));
    const mark = (value, kind, text, anchor) => {
      if (value === null || value > high) return;
      svg.append(drawn("line", { class: kind, x1: x(value), x2: x(value), y1: box.top, y2: box.top + box.height }));
      svg.append(drawn("text", { class: kind, x: x(value) + (anchor === "end" ? -4 : 4), y: box.top - 6, "text-anchor": anchor }, text));
    };
    if (m.bulk) mark(m.bulk.edges[1], "edge", `edge ${number(m.bulk.edges[1])}`, "end");
    mark(m.threshold, "tau", `τ ${number(m.threshold)}`, "start");
    svg.setAttribute("aria-label", `Histogram of the singular values of ${m.name}`);
    $("spectrum-caption").textContent =
      `Singular values of Δ (bars), the law of noise fitted to those up to τ (line).` + (above ? ` ${above} more lie to the right, up to ${number(m.largest)}.` : "");
  };
  const qq = (m) => {
    const svg = $("qq");
    svg.replaceChildren();
    if (!m.bulk) return;
    const box = { left: 40, top: 8, width: 224, height: 190 };
    const high = Math.max(...m.bulk.quantiles.flat());
    const x = (value) => box.left + (box.width * value) / high;
    const y = (value) => box.top + box.height * (1 - value / high);
    axes(svg, box, [[x(0), "0"], [x(high), number(high, 2)], [x(high / 2), "law"]], [[y(0), "0"], [y(high), number(high, 2)], [y(high / 2), "Δ"]]);
    svg.append(drawn("line", { class: "diagonal", x1: x(0), y1: y(0), x2: x(high), y2: y(high) }));
    for (const [law, found] of m.bulk.quantiles) svg.append(drawn("circle", { class: "dots", cx: x(law), cy: y(found), r: 2.6 }));
    svg.setAttribute("aria-label", `Quantile plot of ${m.name}`);
  };
  const variances = (m) => {
    const svg = $("variances");
    svg.replaceChildren();
    if (!m.row_quantiles) return;
    const box = { left: 40, top: 8, width: 224, height: 190 };
    const high = Math.max(2, ...m.row_quantiles, ...m.column_quantiles);
    const x = (index, count) => box.left + (box.width * (index + 0.5)) / count;
    const y = (value) => box.top + box.height * (1 - value / high);
    axes(svg, box, [[box.left, "least"], [box.left + box.width - 6, "most"]], [[y(0), "0"], [y(1), "1"], [y(high), number(high, 2)]]);
    for (const [values, kind, name, position] of [[m.row_quantiles, "first", "rows", 22], [m.column_quantiles, "second", "columns", 36]]) {
      svg.append(drawn("path", { class: kind, d: line(values.map((value, index) => [x(index, values.length), y(value)])) }));
      svg.append(drawn("text", { class: kind, x: box.left + 8, y: box.top + position - 8 }, name));
    }
    svg.setAttribute("aria-label", `Row and column variances of ${m.name}`);
  };
  const select = (index) => {
    const m = matrices[index];
    for (const [other, button] of cells) {
      button.setAttribute("aria-current", String(other === index));
      button.tabIndex = other === index ? 0 : -1;
    }
    for (const row of $("list").tBodies[0].rows) row.setAttribute("aria-current", String(Number(row.dataset.index) === index));
    $("name").textContent = m.name;
    $("facts").textContent = `${m.verdict} · ${m.rows}×${m.columns} · ${m.base_dtype} → ${m.finetuned_dtype}`;
    $("reasons").replaceChildren(...m.reasons.map((reason) => element("li", reason)));
    spectrum(m);
    qq(m);
    variances(m);
    const ranks = Object.entries(m.ranks ?? {}).map(([rule, rank]) => `${rule} ${rank}`).join(", ");
    const facts = [
      ["rank kept", m.rank === null ? "–" : `${m.rank} of ${Math.min(m.rows, m.columns)}`], ["energy kept", percent(m.energy)], ["τ", number(m.threshold)],
      ["median, largest", `${number(m.median)}, ${number(m.largest)}`], ["stable rank", number(m.stable_rank)], ["ranks by rule", ranks || "–"],
      ["KS, p", `${number(m.ks)}, ${number(m.ks_p)}`], ["Anderson–Darling, p", `${number(m.ad)}, ${number(m.ad_p)}`], ["beyond the edge", number(m.beyond_edge)],
      ["KS shuffled, p", `${number(m.shuffled_ks)}, ${number(m.shuffled_ks_p)}`], ["KS random signs, p", `${number(m.flipped_ks)}, ${number(m.flipped_ks_p)}`], ["tail exponent of σ²", number(m.tail_exponent)],
      ["row, column variances vary by", `${percent(m.rows_variation)}, ${percent(m.columns_variation)}`], ["neighbours: rows, columns", `${number(m.rows_correlation, 2)}, ${number(m.columns_correlation, 2)}`], ["excess kurtosis", number(m.kurtosis)],
      ["exactly 0", percent(m.zeros)], ["rounding in the bulk", percent(m.rounding_share)], [`lost when written in ${m.written_dtype ?? "–"}`, percent(m.lost_in_cast)],
      ["‖Δ‖/‖W‖", number(m.relative_norm)], ["inside the base's top tenth", `${percent(m.overlap)} (chance ${percent(m.by_chance)})`], ["intruders of 10", number(m.intruders)],
    ];
    $("numbers").replaceChildren(...facts.map(([term, text]) => {
      const pair = element("div");
      pair.append(element("dt", term), element("dd", text));
      return pair;
    }));
  };

  // The table.
  const list = $("list");
  const rows = [...list.tBodies[0].rows];
  for (const row of rows) {
    const cell = row.cells[0];
    const button = element("button", cell.textContent, { type: "button" });
    button.addEventListener("click", () => {
      select(Number(row.dataset.index));
      $("detail").scrollIntoView({ block: "nearest" });
    });
    cell.replaceChildren(button);
  }
  const show = () => {
    const text = $("filter").value.toLowerCase();
    const verdict = $("verdict").value;
    let shown = 0;
    for (const row of rows) {
      const m = matrices[Number(row.dataset.index)];
      row.hidden = !(m.name.toLowerCase().includes(text) && (!verdict || m.verdict === verdict));
      shown += row.hidden ? 0 : 1;
    }
    $("shown").textContent = `${shown} of ${rows.length} shown`;
  };
  $("filter").addEventListener("input", show);
  $("verdict").addEventListener("change", show);
  [...list.tHead.rows[0].cells].forEach((cell, column) => {
    const button = element("button", cell.textContent, { type: "button" });
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") !== "descending";
      for (const other of cell.parentElement.cells) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key;
      const numeric = column > 1;
      const order = (a, b) => (numeric ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b)));
      list.tBodies[0].append(...rows.sort((a, b) => (down ? -1 : 1) * order(a, b)));
    });
  });
  $("csv").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([data.csv], { type: "text/csv" }));
    const link = element("a", "", { href: url, download: "diagnosis.csv" });
    link.click();
    URL.revokeObjectURL(url);
  });

  $("pictures").hidden = false;
  $("filters").hidden = false;
  show();
  paint(measures[0]);
  // The first to be seen is the one farthest from noise.
  select(matrices.reduce((best, m, index) => ((m.ks ?? -1) > (matrices[best].ks ?? -1) ? index : best), 0));
})();
