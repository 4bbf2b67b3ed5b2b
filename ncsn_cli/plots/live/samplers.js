// Samplers as lists of steps, and chains that make them.

/** num levels from max down to min, in a constant ratio. */
const geometric = (max, min, num) => (num === 1 ? [min]
  : Array.from({ length: num }, (_, i) => max * (min / max) ** (i / (num - 1))));
/** The points where chains start. */
function startingPoints(law, { start, num }, max, stream) {
  if (start === "data") return law.sample(num, max, stream);
  const mu = [0, 0], c = [0, 0, 0];  // the moments of p
  if (start === "prior") {
    for (const { w, mu: [x, y] } of law.components) [mu[0], mu[1]] = [mu[0] + w * x, mu[1] + w * y];
    for (const { w, mu: [x, y], c: own } of law.components) {
      const u = x - mu[0], v = y - mu[1];
      [u * u, u * v, v * v].forEach((square, i) => { c[i] += w * (own[i] + square); });
    }
  }
  const uniform = () => [16 * stream.uniform() - 8, (law.dim - 1) * (16 * stream.uniform() - 8)];
  const point = start === "uniform" ? uniform : () => law.draw({ mu, c }, max, stream.normals());
  return Float64Array.from(Array.from({ length: num }).flatMap(point));
}
/** x + tau score(x, sigma) + sqrt(noise) z. With noise = 2 tau it is a Langevin step. */
function eulerStep(sigma, tau, noise) {
  return ({ x, s, score, stream, law }, from, to) => {
    score(x, sigma, s, from, to);
    for (let i = 2 * from; i < 2 * to; i += 2) {
      const z = noise > 0 ? stream.normals() : [0, 0];
      x[i] += tau * s[i] + Math.sqrt(noise) * z[0];
      if (law.dim === 2) x[i + 1] += tau * s[i + 1] + Math.sqrt(noise) * z[1];
    }
  };
}
/**
 * The probability flow: the posterior mean x + sigma^2 score is extrapolated by the parabola
 * through its last three values. Formula and source: ncsn_cli.samplers.ProbabilityFlow.
 */
function flowSteps(sigmas) {
  let past = [], mean;
  return sigmas.slice(0, -1).map((sigma, index) => {
    const h = Math.log(sigma / sigmas[index + 1]), r = Math.exp(-h), phi0 = 1 - r;
    const phi1 = h - phi0, phi2 = h * h - 2 * phi1, a = Math.log(sigmas[index - 1] / sigma);
    const b = Math.log(sigmas[index - 2] / sigma), isLong = h > 1.25 * a;
    return ({ x, s, score }, from, to) => {
      if (from === 0) mean = new Float64Array(x.length);
      score(x, sigma, s, from, to);
      for (let i = 2 * from; i < 2 * to; i++) {
        mean[i] = x[i] + sigma * sigma * s[i];
        const slope = past.length > 0 ? (mean[i] - past[0][i]) / a : 0;
        if (past.length === 1) x[i] += (a - (1 - Math.exp(-a))) * slope;
        x[i] = r * x[i] + phi0 * mean[i] + (isLong ? 0 : phi1 * slope);
        if (past.length === 2 && !isLong)
          x[i] += ((phi2 + a * phi1) * (slope - (past[0][i] - past[1][i]) / (b - a))) / b;
      }
      if (2 * to === x.length) past = isLong ? [mean] : [mean, ...past.slice(0, 1)];
    };
  });
}
/** The steps of a sampler: level and move. After a step the points should follow p_sigma. */
function stepsOf({ sampler, steps, tau, denoise }, sigmas) {
  const last = sigmas.length - 1, made = [];
  const add = (level, ...moves) => made.push(...moves.map((move) => ({ level, move })));
  const langevin = (sigma, size) => new Array(steps).fill(eulerStep(sigma, size, 2 * size));
  if (sampler === "langevin") add(last, ...langevin(sigmas[last], tau));
  if (sampler === "annealed_langevin")
    sigmas.forEach((each, i) => add(i, ...langevin(each, tau * (each / sigmas[last] || 1) ** 2)));
  if (sampler === "probability_flow") flowSteps(sigmas).forEach((move, i) => add(i + 1, move));
  const changes = sigmas.slice(1).map((next, i) => sigmas[i] ** 2 - next ** 2);
  if (sampler === "reverse_diffusion")
    changes.forEach((change, i) => add(i + 1, eulerStep(sigmas[i], change, change)));
  if (denoise) add(last, eulerStep(sigmas[last], sigmas[last] ** 2, 0));
  return made;
}
/** Chains. They move some particles at a time, so that the page stays responsive. */
class Chains {
  constructor(law, score, state, sigmas) {
    const stream = new Stream(state.seed), x = startingPoints(law, state, sigmas[0], stream);
    const steps = stepsOf(state, sigmas), s = new Float64Array(x.length);
    Object.assign(this, { law, score, sigmas, stream, x, s, steps, made: 0, moved: 0 });
    this.first = state.sampler === "langevin" ? sigmas.length - 1 : 0;
  }
  get hasEnded() { return this.made === this.steps.length; }
  get level() { return this.made > 0 ? this.steps[this.made - 1].level : this.first; }
  get sigma() { return this.sigmas[this.level]; }
  /** Move the next 250 particles by the present step. */
  advance() {
    const num = this.x.length / 2, to = Math.min(num, this.moved + 250);
    this.steps[this.made].move(this, this.moved, to);
    this.moved = to % num;
    if (this.moved === 0) this.made += 1;
  }
}
