// Random numbers, and laws. Points are arrays of 2 N numbers; in one dimension y is 0.

/** Random numbers that depend on the seed alone: the generator sfc32 of C. Doty-Humphrey. */
class Stream {
  constructor(seed) {
    this.state = [0x9e3779b9, 0x243f6a88, 0xb7e15162, seed >>> 0];
    for (let i = 0; i < 20; i++) this.uniform();
  }
  /** A number in (0, 1). */
  uniform() {
    const s = this.state, sum = (s[0] + s[1] + s[3]) | 0;
    s[3] = (s[3] + 1) | 0;
    s[0] = s[1] ^ (s[1] >>> 9);
    s[1] = (s[2] + (s[2] << 3)) | 0;
    s[2] = (((s[2] << 21) | (s[2] >>> 11)) + sum) | 0;
    return ((sum >>> 0) + 0.5) / 2 ** 32;
  }
  normals() { return normals(this.uniform(), this.uniform()); }
}
/** Two draws of N(0, 1) made of two uniform ones, by the method of Box and Muller. */
function normals(u, v) {
  const radius = Math.sqrt(-2 * Math.log(u));
  return [radius * Math.cos(2 * Math.PI * v), radius * Math.sin(2 * Math.PI * v)];
}
/**
 * A mixture p = sum_k w_k N(mu_k, C_k) in dim = 1 or 2 dimensions, and every
 * p_sigma = sum_k w_k N(mu_k, C_k + sigma^2 I). A component is {w, mu: [x, y], c: [c11, c12, c22]}.
 */
class Mixture {
  constructor(components, dim) {
    const total = components.reduce((sum, { w }) => sum + w, 0);
    this.components = components.map((each) => ({ ...each, w: each.w / total }));
    Object.assign(this, { dim, num: components.length, logs: new Float64Array(components.length) });
    this.modes = [...new Map(components.map(({ mu }) => [mu.join(), mu])).values()];  // once each
  }
  /** Prepare p_sigma: of each component mean, precision and log-normaliser. */
  at(sigma) {
    if (this.sigma === sigma) return;
    this.sigma = sigma;
    this.terms = Float64Array.from(this.components.flatMap(({ w, mu, c: [a, b, d] }) => {
      const [u, v] = [a + sigma ** 2, d + sigma ** 2], det = this.dim === 2 ? u * v - b * b : u;
      const precision = this.dim === 2 ? [v / det, -b / det, u / det] : [1 / u, 0, 0];
      const log = Math.log(w) - (Math.log(det) + this.dim * Math.log(2 * Math.PI)) / 2;
      return [...mu, ...precision, log];
    }));
  }
  /** Fill logs with log w_k N_k(x, y), and return the largest. */
  largest(x, y) {
    const t = this.terms;
    let largest = -Infinity;
    for (let k = 0, j = 0; k < this.num; k++, j += 6) {
      const u = x - t[j], v = y - t[j + 1];
      this.logs[k] = t[j + 5] - (u * (t[j + 2] * u + 2 * t[j + 3] * v) + t[j + 4] * v * v) / 2;
      if (this.logs[k] > largest) largest = this.logs[k];
    }
    return largest;
  }
  /** log p_sigma(x, y), in nats, for the sigma of at(). */
  logProb(x, y) {
    const largest = this.largest(x, y);
    return largest + Math.log(this.logs.reduce((sum, log) => sum + Math.exp(log - largest), 0));
  }
  /** Write the score at the points from..to of x into out: sum_k r_k P_k (mu_k - x). */
  score(x, sigma, out, from, to) {
    this.at(sigma);
    for (let i = 2 * from, t = this.terms; i < 2 * to; i += 2) {
      const largest = this.largest(x[i], x[i + 1]);
      let total = 0, first = 0, second = 0;
      for (let k = 0, j = 0; k < this.num; k++, j += 6) {
        if (this.logs[k] < largest - 40) continue;  // e^-40: less than a double resolves
        const r = Math.exp(this.logs[k] - largest), u = t[j] - x[i], v = t[j + 1] - x[i + 1];
        total += r;
        first += r * (t[j + 2] * u + t[j + 3] * v);
        second += r * (t[j + 3] * u + t[j + 4] * v);
      }
      out.set([first / total, second / total], i);
    }
  }
  /** A draw mu + L z of a component at level sigma, L L^T = C + sigma^2 I; z are two of N(0, 1). */
  draw({ mu, c: [a, b, d] }, sigma, z) {
    const root = Math.sqrt(a + sigma ** 2), slope = root > 0 ? b / root : 0;
    const rest = Math.sqrt(Math.max(0, d + sigma ** 2 - slope ** 2));
    return [mu[0] + root * z[0], this.dim === 2 ? mu[1] + slope * z[0] + rest * z[1] : 0];
  }
  /** num draws from p_sigma. */
  sample(num, sigma, stream) {
    return Float64Array.from(Array.from({ length: num }).flatMap(() => {
      let u = stream.uniform(), k = 0;
      while (k < this.num - 1 && (u -= this.components[k].w) > 0) k++;
      return this.draw(this.components[k], sigma, stream.normals());
    }));
  }
  /** Share, number and covariance of the points nearest to each mode; weightOf(i) is a weight. */
  byMode(x, weightOf) {
    const sums = this.modes.map(() => [0, 0, 0, 0, 0, 0, 0]);
    for (let n = 0; n < x.length; n += 2) {
      let k = 0, least = Infinity;
      for (let i = 0; i < this.modes.length; i++) {
        const square = (x[n] - this.modes[i][0]) ** 2 + (x[n + 1] - this.modes[i][1]) ** 2;
        if (square < least) [k, least] = [i, square];
      }
      const u = x[n] - this.modes[k][0], v = x[n + 1] - this.modes[k][1], weight = weightOf(n / 2);
      const add = (value, i) => { sums[k][i] += weight * value; };
      [1 / weight, 1, u, v, u * u, u * v, v * v].forEach(add);
    }
    return sums.map(([num, share, ...rest]) => {
      const [u, v, uu, uv, vv] = rest.map((sum) => sum / share);
      return { num: Math.round(num), share, c: [uu - u * u, uv - u * v, vv - v * v] };
    });
  }
  /** The same of p_sigma, or of its posterior means, by a lattice that fills each component. */
  truth(sigma, isDenoised) {
    const num = Math.max(64, Math.floor(20000 / this.num));  // .7549 is of M. Roberts' sequence R2
    const z = Array.from({ length: num }, (_, i) =>
      normals((i + 0.5) / num, (0.5 + 0.7548776662466927 * i) % 1));
    const x = Float64Array.from(this.components.flatMap((each) =>
      z.flatMap((pair) => this.draw(each, sigma, pair)))), s = new Float64Array(x.length);
    if (isDenoised) this.score(x, sigma, s, 0, x.length / 2);
    return this.byMode(x.map((value, i) => value + sigma ** 2 * s[i]),
      (i) => this.components[Math.floor(i / num)].w / num);
  }
}
/** The interval that holds K/n but for a probability tail on either side, K ~ Bin(n, q). */
function band(n, q, tail) {
  let log = n * Math.log(1 - q), below = 0, low;
  for (let k = 0; k < n; k++) {
    below += Math.exp(log);
    if (below >= tail) low ??= k / n;
    if (below >= 1 - tail) return [low, k / n];
    log += Math.log(((n - k) / (k + 1)) * (q / (1 - q)));
  }
  return [low ?? 1, 1];
}
/**
 * Shares of the points x beside the truth, and the width w of their modes: w^2 is the mean of
 * tr C_k / tr C*_k. All bands of shares together hold 99 % of exact draws, and so does 1 +- error.
 */
function judge(law, x, sigma, isDenoised) {
  const num = x.length / 2, truth = law.truth(sigma, isDenoised);
  let square = 0, variance = 0, used = 0;
  const modes = law.byMode(x, () => 1 / num).map(({ num: n, c }, k) => {
    const [a, b, d] = truth[k].c, q = Number(truth[k].share.toFixed(12));
    const [low, high] = band(num, q, 0.005 / Math.max(1, truth.length - 1));
    if (n > 1 && a + d > 0) {
      used += 1;
      square += ((c[0] + c[2]) * n) / (n - 1) / (a + d);
      variance += (2 * (a * a + 2 * b * b + d * d)) / (a + d) ** 2 / (num * q);
    }
    return { share: n / num, trueShare: q, low, high };
  });
  const width = Math.sqrt(square / used) || 1, error = (1.288 * Math.sqrt(variance)) / used || 0;
  return { modes, width, error };
}
