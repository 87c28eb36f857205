"use strict";
const everything = JSON.parse(document.getElementById("data").textContent);
let data = everything; // with the part that is shown: runs, groups, axes and what else belongs to it
const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SCALE = "Cividis";
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c564b", "#7f7fff", "#6b8e23", "#e15759"];
const lowerIsBetter = (name) => name in data.metrics && !data.metrics[name].higher;

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

const inUnit = (value, name) => value / (data.metrics[name]?.unit ?? 1);
const title = (name) => data.metrics[name]?.label ?? name;

function show(value, name) {
  if (value === null || value === undefined) return "–";
  const digits = data.metrics[name]?.digits;
  return inUnit(value, name).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits ?? (value < 100 ? 1 : 0) });
}

const nearestName = (axis) => axis.split(".").pop();
const label = (run) => data.axes.filter((axis) => run.values[axis] !== undefined).map((axis) => `${nearestName(axis)}=${run.values[axis]}`).join(" ") || run.name;
const score = (run, name) => (run.status === "completed" ? run.numbers[name] : null);

// numbers by their size, other texts after them
function compare(a, b) {
  const x = Number(a), y = Number(b);
  const xs = a === "" || a === null || a === undefined || Number.isNaN(x), ys = b === "" || b === null || b === undefined || Number.isNaN(y);
  if (xs !== ys) return xs ? 1 : -1;
  return xs ? String(a ?? "").localeCompare(String(b ?? "")) : x - y;
}

const levels = (axis, runs) => [...new Set(runs.map((run) => run.values[axis]).filter((v) => v !== undefined))].sort(compare);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// one value for each seed; a repetition counts once
function bySeed(runs, name) {
  const found = new Map();
  for (const run of runs) {
    const value = score(run, name);
    if (value !== null && value !== undefined) found.set(run.values.seed, (found.get(run.values.seed) ?? new Set()).add(value));
  }
  return [...found.values()].map((values) => mean([...values]));
}

// ---------------------------------------------------------------- what is shown

const color = (group) => COLORS[group] ?? css("--quiet");
const groupsOf = (runs) => [...new Set(runs.map((run) => run.group))].sort((a, b) => a - b);
const isWhole = (group, runs) => runs.filter((run) => run.group === group).length === data.runs.filter((run) => run.group === group).length;

function shown() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean), status = byId("status").value;
  return data.runs.filter((run) => (!status || run.status === status) && words.every((word) => run.words.includes(word)));
}

// ---------------------------------------------------------------- charts

function layout(x, y, more) {
  const ink = css("--ink"), line = css("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 },
    margin: { l: 55, r: 20, t: 15, b: 50 }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: css("--panel"), bordercolor: line, font: { color: ink }, align: "left" },
    xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y } }, ...more,
  };
}

function draw(id, traces, how) {
  const place = byId(id);
  if (!traces.length) {
    Plotly.purge(place);
    place.className = "chart empty";
    place.textContent = "Nothing to show for these runs yet.";
    return;
  }
  if (place.classList.contains("empty")) place.textContent = "";
  place.className = "chart";
  Plotly.react(place, traces, how, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
}

// a group of several seeds as its mean with a band of one standard deviation; of a group that is filtered, its runs
function drawCurves(runs) {
  const x = byId("curves-x").value, y = byId("curves-y").value;
  const line = (xs, ys, group, name, more) => ({
    type: "scatter", mode: xs.length > 20 ? "lines" : "lines+markers", x: xs, y: ys, line: { color: color(group), width: 1.6 },
    marker: { size: 5 }, opacity: 0.85, name, hovertemplate: `${name}<br>${title(x)} %{x:.4~g}<br>${title(y)} %{y:.4f}<extra></extra>`, ...more,
  });
  const traces = groupsOf(runs).reverse().flatMap((group) => {
    const band = data.groups[group].bands[`${x} ${y}`];
    if (!band?.length || !isWhole(group, runs)) {
      return runs.filter((run) => run.group === group && run.curve[x] && run.curve[y]).map((run) => line(run.curve[x], run.curve[y], group, label(run)));
    }
    const [xs, means, deviations] = [0, 1, 2].map((n) => band.map((point) => point[n]));
    const name = `${data.groups[group].label} (${data.groups[group].seeds} seeds)`;
    const edges = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", hovertemplate: undefined };
    return [
      line(xs, means.map((value, n) => value - deviations[n]), group, name, edges),
      line(xs, means.map((value, n) => value + deviations[n]), group, name, { ...edges, fill: "tonexty", fillcolor: `${color(group)}26` }),
      line(xs, means, group, name),
    ];
  });
  const longest = Math.max(...runs.map((run) => run.curve.epoch?.length ?? 0));
  const axis = x === "epoch" ? { dtick: longest <= 12 ? 1 : undefined } : { type: "log" };
  draw("curves", traces, layout(title(x), title(y), { xaxis: { ...layout(title(x)).xaxis, ...axis } }));
}

function drawComparison() {
  const found = data.comparisons[Number(byId("comparison-to").value || 0)];
  byId("compared").hidden = !found;
  if (!found) return;
  const rows = found.differences, names = found.texts.map((row) => row[0]);
  draw("comparison", [{
    type: "scatter", mode: "markers", x: rows.map((row) => row[0]), y: names, text: found.texts.map((row) => row.slice(1).join(", ")),
    marker: { size: 8, color: rows.map((row) => (row.length > 1 && (row[1] > 0 || row[2] < 0) ? COLORS[0] : css("--quiet"))) },
    error_x: { type: "data", symmetric: false, array: rows.map((row) => (row[2] ?? row[0]) - row[0]), arrayminus: rows.map((row) => row[0] - (row[1] ?? row[0])), color: css("--quiet") },
    hovertemplate: "%{y}<br>%{text}<extra></extra>",
  }], layout(`${found.metric} above ${found.reference}`, "", { yaxis: { ...layout("").yaxis, autorange: "reversed", type: "category" } }));
  fill("comparisons", found.header.map((name, n) => ({ name, cell: (row) => row[n], number: n === 1 })), found.texts);
}

function drawHeatmap(runs) {
  const [x, y, z] = ["x", "y", "z"].map((part) => byId(`heatmap-${part}`).value);
  const across = levels(x, runs), up = levels(y, runs);
  const cells = up.map((row) => across.map((column) => runs.filter((run) => run.values[x] === column && run.values[y] === row).filter((run) => score(run, z) != null)));
  if (x === y || !cells.flat(2).length) return draw("heatmap", []);
  const values = cells.map((row) => row.map((cell) => (cell.length ? mean(bySeed(cell, z)) : null)));
  const texts = values.map((row) => row.map((value) => (value === null ? "" : show(value, z))));
  const hover = cells.map((row) => row.map((cell) => `${cell.length} runs, ${bySeed(cell, z).length} seeds`));
  const known = values.flat().filter((value) => value !== null), low = Math.min(...known), high = Math.max(...known);
  const around = high > low ? 0 : Math.max(Math.abs(low) / 100, 1e-9); // else one value would span all colors
  draw("heatmap", [{
    zmin: low - around, zmax: high + around,
    type: "heatmap", x: across, y: up, z: values, text: texts, customdata: hover, colorscale: SCALE, reversescale: lowerIsBetter(z),
    texttemplate: across.length * up.length <= 80 ? "%{text}" : "", hoverongaps: false, xgap: 2, ygap: 2, colorbar: { thickness: 12, outlinewidth: 0 },
    hovertemplate: `${nearestName(x)} %{x}<br>${nearestName(y)} %{y}<br>mean ${title(z)} %{text}<br>%{customdata}<extra></extra>`,
  }], layout(x, y, { xaxis: { ...layout(x).xaxis, type: "category" }, yaxis: { ...layout(x, y).yaxis, type: "category" } }));
}

function drawPareto(runs) {
  const x = byId("pareto-x").value, y = byId("pareto-y").value;
  const points = runs.filter((run) => score(run, x) != null && score(run, y) != null);
  if (!points.length) return draw("pareto", []);
  const cheap = lowerIsBetter(x) ? 1 : -1, good = lowerIsBetter(y) ? -1 : 1;
  const front = [];
  for (const run of [...points].sort((a, b) => cheap * (a.numbers[x] - b.numbers[x]) || good * (b.numbers[y] - a.numbers[y]))) {
    if (!front.length || good * run.numbers[y] > good * front[front.length - 1].numbers[y]) front.push(run);
  }
  const values = (name, list) => list.map((run) => inUnit(run.numbers[name], name));
  draw("pareto", [
    { type: "scatter", mode: "lines", x: values(x, front), y: values(y, front), line: { color: css("--quiet"), width: 1.5, shape: cheap > 0 ? "hv" : "vh", dash: "dot" }, hoverinfo: "skip" },
    { type: "scatter", mode: "markers", x: values(x, points), y: values(y, points), text: points.map(label),
      marker: { size: 10, color: points.map((run) => color(run.group)), line: { width: points.map((run) => (front.includes(run) ? 2 : 0)), color: css("--ink") } },
      hovertemplate: `%{text}<br>${title(x)} %{x:.4~g}<br>${title(y)} %{y:.4f}<extra></extra>` },
  ], layout(title(x), title(y), { xaxis: { ...layout(title(x)).xaxis, type: "log" } }));
}

function drawParallel(runs) {
  const z = byId("parallel-z").value, axes = data.axes;
  const points = runs.filter((run) => score(run, z) != null).sort((a, b) => score(a, z) - score(b, z));
  if (!points.length || !axes.length) return draw("parallel", []);
  const low = Math.min(...points.map((run) => score(run, z))), high = Math.max(...points.map((run) => score(run, z)));
  const share = (run) => (high > low ? (score(run, z) - low) / (high - low) : 0.5);
  const ticks = [];
  const height = Object.fromEntries(axes.map((axis, n) => {
    const all = levels(axis, points), place = new Map(all.map((value, k) => [value, all.length > 1 ? k / (all.length - 1) : 0.5]));
    (all.length <= 12 ? all : [all[0], all[all.length - 1]]).forEach((value) => ticks.push([n, place.get(value), value]));
    return [axis, place];
  }));
  ticks.push([axes.length, 0, show(low, z)], [axes.length, 1, show(high, z)]);
  const shade = (run) => (lowerIsBetter(z) ? 1 - share(run) : share(run));
  const traces = points.map((run) => ({
    type: "scatter", mode: "lines", x: [...axes.keys(), axes.length], y: [...axes.map((axis) => height[axis].get(run.values[axis])), share(run)],
    line: { color: blend(shade(run)), width: 1.2 + 1.4 * shade(run), shape: "spline", smoothing: 0.6 }, opacity: 0.45 + 0.5 * shade(run),
    hovertemplate: `${label(run)}<br>${title(z)} ${show(score(run, z), z)}<extra></extra>`,
  }));
  const base = layout("", "");
  draw("parallel", traces, {
    ...base, margin: { l: 30, r: 65, t: 15, b: 60 },
    xaxis: { ...base.xaxis, tickvals: [...axes.keys(), axes.length], ticktext: [...axes.map(nearestName), title(z)], showgrid: true, zeroline: false, range: [-0.15, axes.length + 0.1], fixedrange: true },
    yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true },
    annotations: ticks.map(([x, y, text]) => ({ x, y, text, xanchor: "left", xshift: 4, showarrow: false, font: { size: 11, color: css("--ink") }, bgcolor: css("--paper"), opacity: 0.85 })),
  });
}

// from dark blue to yellow, as the heatmap, but never too near to the paper
function blend(share) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const [from, to] = dark ? [[70, 90, 140], [253, 231, 55]] : [[150, 165, 200], [0, 45, 110]];
  return `rgb(${from.map((value, n) => Math.round(value + (to[n] - value) * share)).join(",")})`;
}

// ---------------------------------------------------------------- tables

const sorting = { groups: null, table: null };

// columns: {name, number, cell(row) → text or element, key(row) → what it is sorted by}
function fill(id, columns, rows) {
  const table = byId(id), sort = sorting[id];
  if (sort) {
    const column = columns.find((each) => each.name === sort.name);
    const missing = (value) => value === null || value === undefined;
    if (column) {
      rows = [...rows].sort((a, b) => {
        const x = column.key(a), y = column.key(b);
        if (missing(x) || missing(y)) return missing(x) - missing(y);
        return sort.up * compare(x, y);
      });
    }
  }
  const head = make("tr");
  for (const column of columns) {
    const cell = make("th", undefined, column.number ? "number" : "");
    cell.scope = "col";
    if (column.key) {
      const button = make("button", column.short ?? title(column.name));
      button.type = "button";
      button.title = column.name;
      const up = sort && sort.name === column.name ? -sort.up : column.number && !lowerIsBetter(column.name) ? -1 : 1;
      button.addEventListener("click", () => {
        sorting[id] = { name: column.name, up };
        refreshTables();
        byId(id).querySelectorAll("th button").forEach((each) => each.title === column.name && each.focus());
      });
      cell.append(button);
      if (sort && sort.name === column.name) cell.setAttribute("aria-sort", sort.up > 0 ? "ascending" : "descending");
    } else cell.append(make("span", column.name, column.name));
    head.append(cell);
  }
  const body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    for (const column of columns) {
      const content = column.cell(row);
      const cell = make("td", undefined, column.number ? "number" : "");
      cell.append(content);
      line.append(cell);
    }
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.replaceChildren(top, body);
}

function refreshTables() {
  const runs = shown();
  const shorts = data.axes.map(nearestName), short = (axis) => (shorts.indexOf(nearestName(axis)) === shorts.lastIndexOf(nearestName(axis)) ? nearestName(axis) : axis);
  const axisColumn = (axis, of) => ({ name: axis, short: short(axis), number: data.runs.every((run) => !(axis in run.values) || !Number.isNaN(Number(run.values[axis]))), cell: (row) => of(row)[axis] ?? "–", key: (row) => of(row)[axis] });
  fill("table", [
    { name: "run", cell: runLink, key: (run) => run.name.split("/").pop() },
    { name: "again", cell: copyButton },
    { name: "status", cell: (run) => make("span", run.status, run.status), key: (run) => run.status },
    ...data.axes.map((axis) => axisColumn(axis, (run) => run.values)),
    ...[...data.scores, ...data.costs].map((name) => ({ name, number: true, cell: (run) => show(run.numbers[name], name), key: (run) => run.numbers[name] })),
  ], runs);

  const names = [...data.scores, ...data.costs.filter((name) => name === "seconds" || name === "images_per_second")];
  fill("groups", [
    ...data.axes.filter((axis) => axis !== "seed").map((axis) => axisColumn(axis, (group) => data.runs.find((run) => run.group === group).values)),
    { name: "seeds", number: true, cell: (group) => String(data.groups[group].seeds), key: (group) => data.groups[group].seeds },
    ...names.map((name) => ({ name, number: true, key: (group) => data.groups[group].cells[name][0], cell: (group) => data.groups[group].cells[name][1] })),
  ], groupsOf(runs));
}

function runLink(run) {
  const link = make("a", run.name.split("/").slice(-1)[0]);
  link.href = run.link.split("/").map((part) => (part === ".." ? part : encodeURIComponent(part))).join("/") + "/";
  link.title = run.name;
  return link;
}

function copyButton(run) {
  if (!run.command) return "";
  const button = make("button", "copy", "copy");
  button.type = "button";
  button.title = run.command;
  button.setAttribute("aria-label", `Copy the command that repeats ${run.name}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(run.command);
      button.textContent = "copied";
    } catch {
      window.prompt("The command that repeats this run:", run.command); // where the browser keeps the clipboard closed
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return button;
}

// ---------------------------------------------------------------- the page

function drawLegend(runs) {
  const here = groupsOf(runs), named = here.filter((group) => group < COLORS.length);
  byId("legend").replaceChildren(...(here.length < 2 ? [] : named).map((group) => {
    const item = make("li"), dot = make("span", "●");
    dot.style.color = color(group);
    item.append(dot, " ", data.groups[group].label);
    return item;
  }), ...(here.length > named.length ? [make("li", `● ${here.length - named.length} others`, "quiet")] : []));
}

function refresh() {
  const runs = shown();
  drawLegend(runs);
  byId("shown").textContent = `${runs.length} of ${data.runs.length} runs`;
  drawCurves(runs);
  drawHeatmap(runs);
  drawPareto(runs);
  drawParallel(runs);
  drawComparison();
  refreshTables();
}

function options(id, values, chosen) {
  byId(id).replaceChildren(...values.map((value) => {
    const option = make("option", title(value) || "all");
    option.value = value;
    return option;
  }));
  byId(id).value = chosen ?? values[0] ?? "";
  byId(id).closest("label").hidden = !values.length;
}

function card(title, text, more) {
  const box = make("div", undefined, "card");
  box.append(make("span", title, "quiet"), make("strong", text), make("small", more));
  byId("short").append(box);
}

// shows one part of the report: runs that belong side by side
function choose(n) {
  data = { ...everything, ...(everything.parts[n] ?? { runs: [], groups: [], axes: [], scores: [], costs: [], curves: [], progress: [], comparisons: [] }) };
  for (const run of data.runs) {
    run.words = [run.name, run.status, run.reason, ...Object.entries(run.values).map(([k, v]) => `${k}=${v}`)].join(" ").toLowerCase();
  }
  const statuses = [...new Set(data.runs.map((run) => run.status))];
  byId("counts").textContent = statuses.map((status) => `${data.runs.filter((run) => run.status === status).length} ${status}`).join(", ");
  byId("short").replaceChildren();
  const done = data.runs.filter((run) => run.status === "completed"), best = data.runs[data.best ?? -1];
  if (best) {
    const validated = data.objective !== "test/acc", by = show(best.numbers[data.objective], data.objective);
    if (!validated) card("best test/acc", by, `chosen on the test set, for there is no validation set; ${label(best)}`);
    else card("best by val/acc", by, `test/acc ${show(best.numbers["test/acc"], "test/acc")}; ${label(best)}`);
  }
  const quick = done.filter((run) => run.numbers.images_per_second).sort((a, b) => b.numbers.images_per_second - a.numbers.images_per_second)[0];
  if (quick) card("fastest training", `${show(quick.numbers.images_per_second, "images_per_second")} images/s`, label(quick));
  if (done.length) card("trained for", `${show(done.reduce((sum, run) => sum + (run.numbers.seconds ?? 0), 0) / 60, "")} min`, `${done.length} completed runs together`);
  options("status", ["", ...statuses]);
  options("curves-x", data.progress);
  options("curves-y", data.curves, data.curves.includes(data.objective) ? data.objective : undefined);
  options("heatmap-x", data.axes, data.pair?.[0]);
  options("heatmap-y", data.axes, data.pair?.[1] ?? data.axes[1]);
  options("heatmap-z", [...data.scores, ...data.costs], data.objective);
  options("pareto-x", data.costs);
  options("pareto-y", data.scores, data.objective);
  options("parallel-z", [...data.scores, ...data.costs], data.objective);
  options("comparison-to", data.comparisons.map((each, n) => String(n)), String(data.comparisons.length - 1));
  [...byId("comparison-to").options].forEach((option, n) => { option.textContent = data.comparisons[n].reference; });
  refresh();
}

function start() {
  document.title = `${data.title} – vggexp`;
  byId("title").textContent = data.title;
  byId("made").textContent = `Made by vggexp report, ${data.made}.`;
  byId("machines").textContent = data.machines.length ? `Trained on ${data.machines.join("; ")}.` : "";
  byId("notes").replaceChildren(...data.notes.map((note) => make("p", note, "note")));
  options("part", everything.parts.map((part, n) => String(n)));
  [...byId("part").options].forEach((option, n) => { option.textContent = everything.parts[n].title || data.title; });
  byId("part").closest("label").hidden = everything.parts.length < 2;
  if (data.differences.length) {
    byId("difference").hidden = false;
    const runs = everything.parts.flatMap((part) => part.runs), head = ["", ...runs.map((run) => run.name)];
    fill("differences", head.map((name, n) => ({ name, cell: (row) => row[n] })), data.differences);
  }
  byId("failed").hidden = !data.failures.length;
  byId("failures").replaceChildren(...data.failures.map(([name, reason]) => {
    const item = make("li");
    item.append(`${name}: `, make("span", reason, "failed"));
    return item;
  }));

  let waiting;
  const later = () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); };
  byId("words").addEventListener("input", later);
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  byId("filter").addEventListener("reset", () => setTimeout(() => choose(0)));
  document.querySelectorAll("select").forEach((select) => select.addEventListener("change", select.id === "part" ? () => choose(Number(select.value)) : refresh));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  for (const event of ["beforeprint", "afterprint"]) window.addEventListener(event, refresh);
  choose(0);
}

start();
