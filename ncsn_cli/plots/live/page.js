// The page: its controls, the state in its address, and the loop that draws.

const find = (selector) => document.querySelector(selector);
const controls = [...document.querySelectorAll("[data-key]")];
const handles = [...document.querySelectorAll("#handles button")];
const picture = new Picture(find("canvas")), network = SCENE.program && networkScore(SCENE.program);
let state, law, chains, selected = 0, isRunning = false, held = null, isDue = true, shown = 0;
/** The components of a law of this name, or of "w@x,y@c11,c12,c22;...", and their dimension. */
function lawOf(text) {
  const parts = SCENE.laws[text] ?? text.split(";").map((part) => part.split("@")
    .map((numbers) => numbers.split(",").map(Number)));
  return new Mixture(parts.map(([[w], [x, y = 0], [a, b = 0, d = a]]) => {
    const isFine = w > 0 && a >= 0 && d >= 0 && a * d >= b * b && Math.hypot(x, y) < Infinity;
    if (!isFine && !(text in SCENE.laws)) throw Error();
    return { w, mu: [x, y], c: [a, b, d] };
  }), Math.min(2, parts[0][1].length));
}
/** The value of an input; a range with data-log holds the logarithm. */
function valueOf(input) {
  if (input.type !== "range") return input.type === "checkbox" ? input.checked : input.value;
  return Number("log" in input.dataset ? (10 ** input.value).toPrecision(4) : input.value);
}
function put(input, value) {
  if (input.type === "checkbox") input.checked = String(value) === "true";
  else input.value = "log" in input.dataset ? Math.max(-9, Math.log10(value)) : value;
  if (input.type === "range") input.nextElementSibling.value = Number(Number(value).toPrecision(3));
}
function readAddress() {
  state = { ...SCENE.state };
  const given = new URLSearchParams(location.hash.slice(1));
  for (const input of controls.filter(({ type, dataset: { key } }) =>
    given.has(key) && (type !== "range" || parseFloat(given.get(key)) >= 0))) {
    put(input, given.get(input.dataset.key));
    if (input.selectedIndex !== -1) state[input.dataset.key] = valueOf(input);
  }
  try { state.law = lawOf(given.get("law")) && given.get("law"); } catch { /* no law */ }
}
/** Start again with the present state, and write it into the address. */
function restart() {
  law = lawOf(state.law);
  if (state.min >= state.max && state.levels > 1) state.min = state.max / 2;
  const isAsGiven = ["max", "min", "levels"].every((key) => state[key] === SCENE.state[key]);
  const sigmas = (isAsGiven && SCENE.sigmas) || geometric(state.max, state.min, state.levels);
  let source = law;
  if (state.score === "empirical") {
    const draws = law.sample(state.points, 0, new Stream(1000 + state.seed));
    source = new Mixture(Array.from({ length: state.points }, (_, i) =>
      ({ w: 1, mu: [draws[2 * i], draws[2 * i + 1]], c: [0, 0, 0] })), law.dim);
  }
  const score = state.score === "network" ? network : source.score.bind(source);
  chains = new Chains(law, score, state, sigmas);
  showControls();
  show();
  const changed = Object.entries(state).filter(([key, value]) => value !== SCENE.state[key]);
  if (held === null) history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
}
function change(components) {
  state.law = components.map(({ w, mu, c }) => [[w], mu.slice(0, law.dim), c].map((numbers) =>
    numbers.map((value) => Number(value.toPrecision(8))).join()).join("@")).join(";");
  if (components.length > law.num) selected = law.num;  // the new one
  restart();
}
const changeSelected = (changes) => change(law.components.with(selected,
  { ...law.components[selected], ...changes }));
function showControls() {
  const { w, c } = law.components[selected = Math.min(selected, law.num - 1)];
  find("#own").value = state.law in SCENE.laws ? "" : state.law;  // an option of that name
  for (const input of controls) {
    put(input, state[input.dataset.key]);
    input.disabled = !`${state.sampler} ${state.score}`.includes(input.dataset.only ?? "");
  }
  put(find("#weight"), w);
  put(find("#width"), Math.sqrt(c[0]));
  find("#selected").textContent = `Mode ${selected + 1} of ${law.num}`;
  find("#mode").hidden = law.num > handles.length;
  const last = chains.sigmas.at(-1), top = chains.sigmas[chains.first];  // the widest level
  const narrowest = state.score === "empirical" ? 0 : Math.min(...law.components.map(
    ({ c: [a, b, d] }) => (a + d) / 2 - Math.hypot((a - d) / 2, b)));
  const eta = (state.tau * (top / last || 1) ** 2) / (narrowest + top ** 2);
  find("#eta").innerHTML = state.sampler.endsWith("langevin") ? `eta = tau/(s² + sigma²) = ${
    eta.toPrecision(3)}${eta < 2 ? "" : "<b class=wrong>: chains diverge from 2 on</b>"}` : "";
}
/** Say where the chains are, with shares and width beside the truth at this level. */
function show() {
  isDue = true;
  find("#run").textContent = isRunning ? "Pause" : chains.hasEnded ? "Run again" : "Run";
  find("#place").textContent = `level ${chains.level + 1} of ${chains.sigmas.length}, sigma = ${
    chains.sigma.toPrecision(3)}, step ${chains.made} of ${chains.steps.length}`;
  const isFinite = chains.x.every((v) => Math.abs(v) < 1e9), num = law.modes.length;
  const isDenoised = chains.hasEnded && state.denoise;
  const found = isFinite ? judge(law, chains.x, chains.sigma, isDenoised) : { modes: [] };
  const row = (name, [now, truth, low, high], text) => {
    const off = (now - truth) / ((now > truth ? high : low) - truth);
    const word = off > 2 ? "<b class=wrong>✗ wrong</b>" : off > 1 ? "<b>✗ visible</b>" : "✓";
    return `<tr><td>${[name, ...[now, truth, low, high].map(text), word].join("<td>")}`;
  };
  const rows = found.modes.map(({ share, trueShare, low, high }, k) => row(`mode ${k + 1}`,
    [share, trueShare, low, high], (each) => `${(100 * each).toFixed(1)} %`));
  const table = rows.filter((text) => num <= 8 || text.includes("✗")).slice(0, 8);
  if (found.width) table.push(row("width", [found.width, 1, 1 - found.error, 1 + found.error],
    (each) => each.toFixed(3)));
  find("#shares tbody").innerHTML = table.join("");
  find("#verdict").textContent = !isFinite ? "The chains diverged: take a smaller step size."
    : !chains.hasEnded ? "" : table.join().includes("✗") ? "At the end: off in the rows with ✗."
      : "At the end: as good as exact draws.";
}
/** Make steps for some milliseconds, and draw. */
function frame() {
  const until = performance.now() + 9, before = chains.made;
  while (isRunning && !chains.hasEnded && chains.made < before + state.speed
    && performance.now() < until) chains.advance();
  if (isRunning && (chains.hasEnded || performance.now() > shown + 250)) {
    isRunning = !chains.hasEnded;
    shown = performance.now();
    show();
  }
  if (isDue || chains.made !== before) {
    isDue = false;
    if (held === null) picture.fit(law, chains.sigma);
    picture.draw(law, chains, state);
    placeHandles();
  }
  requestAnimationFrame(frame);
}
/** Put the buttons on the modes. */
function placeHandles() {
  handles.forEach((handle, k) => {
    handle.hidden = law.num > handles.length || k >= law.num;
    const [left, top] = picture.toPixels(...(law.components[k]?.mu ?? [0, 0]));
    const place = law.dim === 2 ? top : picture.height - FLOOR - 14;
    Object.assign(handle.style, { left: `${left}px`, top: `${place}px` });
  });
}
handles.forEach((handle, k) => {
  handle.onfocus = () => { selected = k; showControls(); };
  handle.onpointerdown = () => { selected = held = k; };
  handle.onkeydown = ({ key }) => {  // false keeps the page from scrolling
    const step = picture.width / picture.scale / 50, move = { ArrowLeft: [-step, 0],
      ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[key];
    return !move || !!changeSelected({ mu: law.components[k].mu.map((m, i) => m + move[i]) });
  };
});
for (const input of controls)
  input.oninput = () => { state[input.dataset.key] = valueOf(input); restart(); };
find("#weight").oninput = ({ target }) => {
  const w = Number(target.value), rest = (1 - w) / (1 - law.components[selected].w || 1);
  change(law.components.map((each, k) => ({ ...each, w: k === selected ? w : each.w * rest })));
};
find("#width").oninput = ({ target }) =>
  changeSelected({ c: [valueOf(target) ** 2, 0, valueOf(target) ** 2] });
find("#add").onclick = () => law.num < handles.length && change([...law.components,
  { ...law.components[selected], mu: picture.toData(25 + 25 * law.num, 0.8 * picture.height) }]);
find("#remove").onclick = () => law.num > 1 && change(law.components.toSpliced(selected, 1));
find("#run").onclick = () => {
  if (chains.hasEnded) restart();
  isRunning = !isRunning;
  show();
};
find("#restart").onclick = restart;
onpointermove = ({ clientX, clientY }) => {
  const { left, top } = picture.canvas.getBoundingClientRect();
  if (held !== null) changeSelected({ mu: picture.toData(clientX - left, clientY - top) });
};
onpointerup = onpointercancel = () => { if (held !== null) { held = null; restart(); } };
onresize = () => { isDue = true; };
onkeydown = ({ key, target }) => key !== " " || target !== document.body || !!find("#run").click();
(onhashchange = () => { readAddress(); restart(); })();
requestAnimationFrame(frame);
