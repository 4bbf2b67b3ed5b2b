// The run's network: the operations that program.py has recorded, on tensors with three axes.
/** Call visit(n, i, j) for each element n of a shape, with its places i and j in a and b. */
function walk([layers, rows, columns], a, b, visit) {
  const strides = ({ shape: [l, r, c] }) => [l > 1 ? r * c : 0, r > 1 ? c : 0, c > 1 ? 1 : 0];
  const [p, q] = [strides(a), strides(b)];
  for (let l = 0, n = 0; l < layers; l++)
    for (let row = 0; row < rows; row++) {
      let i = l * p[0] + row * p[1], j = l * q[0] + row * q[1];
      for (let end = n + columns; n < end; n++, i += p[2], j += q[2]) visit(n, i, j);
    }
}
const each = (f) => (out, a, b = a) =>
  walk(out.shape, a, b, (n, i, j) => { out.data[n] = f(a.data[i], b.data[j]); });
const reduced = (f, first) => (out, a) => {
  out.data.fill(first);
  walk(a.shape, a, out, (n, i, j) => { out.data[j] = f(out.data[j], a.data[i]); });
};
/** a (B, I) times b (I, O) plus a row. */
function addmm({ data, shape: [, rows, columns] }, row, a, b) {
  for (let i = 0, inner = b.shape[1]; i < rows; i++) {
    const line = data.subarray(i * columns, (i + 1) * columns);
    line.set(row.data);
    for (let k = 0, at = 0; k < inner; k++, at += columns) {
      const value = a.data[i * inner + k];
      for (let j = 0; j < columns; j++) line[j] += value * b.data[at + j];
    }
  }
}
/** Parts side by side, along the last axis. */
function cat(out, ...parts) {
  parts.reduce((first, { data, shape: [, , own] }) => {
    const start = (n) => Math.floor(n / own) * out.shape[2] + first;
    data.forEach((v, n) => { out.data[start(n) + (n % own)] = v; });
    return first + own;
  }, 0);
}
function t(out, { data, shape: [, rows, columns] }) {
  data.forEach((v, n) => { out.data[(n % columns) * rows + Math.floor(n / columns)] = v; });
}
const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const OPERATIONS = {
  add: each((a, b) => a + b), sub: each((a, b) => a - b), mul: each((a, b) => a * b),
  div: each((a, b) => a / b), pow: each((a, b) => a ** b), neg: each((a) => -a),
  exp: each(Math.exp), log: each(Math.log), sqrt: each(Math.sqrt), sin: each(Math.sin),
  cos: each(Math.cos), tanh: each(Math.tanh), sigmoid: each(sigmoid), expand: each((a) => a),
  relu: each((a) => Math.max(0, a)), silu: each((a) => a * sigmoid(a)), addmm, cat, t,
  softplus: each((a) => (a > 20 ? a : Math.log1p(Math.exp(a)))),
  sum: reduced((a, b) => a + b, 0), amax: reduced(Math.max, -Infinity),
  reshape: (out, a) => out.data.set(a.data),
};
/** The network as a function (x, sigma, out, from, to), like Mixture.score. */
function networkScore({ constants, operations, output, dim }) {
  const fixed = {};
  for (const [name, { data, shape }] of Object.entries(constants)) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    fixed[name] = { data: new Float32Array(bytes.buffer), shape };
  }
  const run = (values, [name, args, result, sizes], rows) => {
    const shape = sizes.map((n) => (n === "B" ? rows : n)), [l, r, c] = shape;
    values[result] = { data: new Float32Array(l * r * c), shape };
    OPERATIONS[name](values[result], ...args.map((arg) => values[arg]));
  };
  const later = operations.filter((operation) => {  // the others depend on constants alone
    const isFixed = operation[1].every((arg) => fixed[arg]) && !operation[3].includes("B");
    if (isFixed) run(fixed, operation);
    return !isFixed;
  });
  return (x, sigma, out, from, to) => {
    const points = Float32Array.from(x.subarray(2 * from, 2 * to)).filter((_, i) => i % 2 < dim);
    const values = { ...fixed, x: { data: points, shape: [1, to - from, dim] } };
    values.sigma = { data: Float32Array.of(sigma), shape: [1, 1, 1] };
    for (const operation of later) run(values, operation, to - from);
    values[output].data.forEach((v, i) => { out[2 * from + (dim === 2 ? i : 2 * i)] = v; });
  };
}
