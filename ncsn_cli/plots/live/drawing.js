// What the canvas shows: density, score and particles of a law in one or two dimensions.
const ARROWS = 15, BIN = 10, FLOOR = 50;  // the last two: pixels, for D = 1
class Picture {
  constructor(canvas) {
    const image = document.createElement("canvas");
    Object.assign(this, { canvas, image, context: canvas.getContext("2d") });
  }
  /** Fit the canvas to its place on the page, and the box that it shows to p_sigma. */
  fit(law, sigma) {
    const { width, height } = this.canvas.getBoundingClientRect(), ratio = devicePixelRatio;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    this.context.scale(ratio, ratio);
    const widest = Math.max(...law.components.flatMap(({ c: [a, , d] }) => [a, d]));
    const margin = 2.5 * (sigma + Math.sqrt(widest)) || 1;
    const [[left, right], [low, high]] = [0, 1].map((axis) => law.modes.map((mode) => mode[axis]))
      .map((all) => [Math.min(...all) - margin, Math.max(...all) + margin]);
    const scales = [width / (right - left), law.dim === 2 ? height / (high - low) : Infinity];
    const centre = [(left + right) / 2, (low + high) / 2];
    Object.assign(this, { width, height, centre, scale: Math.min(...scales) });  // pixels a unit
  }
  toPixels(x, y) {
    const { width, height, scale, centre } = this;
    return [width / 2 + (x - centre[0]) * scale, height / 2 - (y - centre[1]) * scale];
  }
  toData(left, top) {
    const { width, height, scale, centre } = this;
    return [centre[0] + (left - width / 2) / scale, centre[1] - (top - height / 2) / scale];
  }
  colour(name) { return getComputedStyle(this.canvas).getPropertyValue(name); }
  draw(law, chains, { density, particles, arrows }) {
    this.context.clearRect(0, 0, this.width, this.height);
    law.at(chains.sigma);
    const peak = Math.max(...law.modes.map((mode) => law.logProb(...mode)));
    this.unit = (0.85 * (this.height - FLOOR)) / Math.exp(peak);  // pixels of density 1
    if (density && law.dim === 2) this.densityImage(law);
    if (particles) (law.dim === 2 ? this.dots : this.histogram).call(this, chains.x);
    if (density && law.dim === 1) this.curve(law);
    if (arrows) this.arrows(law, chains);
    this.ticks();
  }
  densityImage(law) {
    const columns = law.num > 128 ? 48 : 96, rows = Math.ceil((columns * this.height) / this.width);
    const key = JSON.stringify([this.centre, this.scale, rows, law.sigma, law.components]);
    if (key !== this.drawn) {
      const cell = this.width / columns, logs = Float64Array.from({ length: rows * columns },
        (_, n) => law.logProb(...this.toData(
          ((n % columns) + 0.5) * cell, (Math.floor(n / columns) + 0.5) * cell)));
      const largest = logs.reduce((a, b) => Math.max(a, b)), pixels = new ImageData(columns, rows);
      const rgb = this.colour("--density").split(" ");
      logs.forEach((log, n) =>  // the root of the density, so that small modes show
        pixels.data.set([...rgb, 190 * Math.exp((log - largest) / 2)], 4 * n));
      Object.assign(this.image, { width: columns, height: rows });
      this.image.getContext("2d").putImageData(pixels, 0, 0);
      this.drawn = key;
    }
    this.context.drawImage(this.image, 0, 0, this.width, (rows * this.width) / columns);
  }
  /** The score on a grid; of its usual size, an arrow has half of the greatest length. */
  arrows(law, { score, sigma }) {
    const unit = Math.hypot(sigma, Math.sqrt(law.components[0].c[0])), places = [];
    const cell = this.width / ARROWS, context = this.context;
    for (let top = law.dim === 2 ? cell / 2 : this.height - 28; top < this.height - 20; top += cell)
      for (let left = cell / 2; left < this.width; left += cell) places.push([left, top]);
    const x = Float64Array.from(places.flatMap(([left, top]) => this.toData(left, top)));
    const s = new Float64Array(x.length);
    score(x, sigma, s, 0, places.length);
    Object.assign(context, { strokeStyle: this.colour("--arrow"), lineWidth: 1.5 });
    context.beginPath();
    places.forEach(([left, top], i) => {
      const u = s[2 * i], v = law.dim === 2 ? -s[2 * i + 1] : 0, size = unit * Math.hypot(u, v);
      const angle = Math.atan2(v, u), length = (0.9 * cell * size) / (1 + size);
      const a = left + length * Math.cos(angle), b = top + length * Math.sin(angle);
      for (const [tail, turn] of [[length, Math.PI], [5, 2.6], [5, -2.6]]) {
        const part = Math.min(tail, length);
        context.moveTo(a, b);
        context.lineTo(a + part * Math.cos(angle + turn), b + part * Math.sin(angle + turn));
      }
    });
    context.stroke();
  }
  dots(x) {
    this.context.fillStyle = this.colour("--particle");
    for (let i = 0; i < x.length; i += 2) {
      const [left, top] = this.toPixels(x[i], x[i + 1]);
      this.context.fillRect(left - 1.5, top - 1.5, 3, 3);
    }
  }
  histogram(x) {
    const counts = new Array(Math.ceil(this.width / BIN)).fill(0);
    for (let i = 0; i < x.length; i += 2) counts[Math.floor(this.toPixels(x[i], 0)[0] / BIN)] += 1;
    this.context.fillStyle = this.colour("--particle");
    counts.forEach((count, i) => {
      const tall = (count / (x.length / 2)) * (this.scale / BIN) * this.unit;
      this.context.fillRect(BIN * i, this.height - FLOOR - tall, BIN - 1, tall);
    });
  }
  curve(law) {
    Object.assign(this.context, { strokeStyle: this.colour("--curve"), lineWidth: 2.5 });
    this.context.beginPath();
    for (let left = 0; left <= this.width; left += 2)
      this.context.lineTo(left, this.height - FLOOR
        - Math.exp(law.logProb(this.toData(left, 0)[0], 0)) * this.unit);
    this.context.stroke();
  }
  ticks() {
    const least = 60 / this.scale, ten = 10 ** Math.ceil(Math.log10(least));  // apart
    const step = [ten / 5, ten / 2, ten].find((each) => each >= least);
    const style = { textAlign: "center", font: "13px system-ui, sans-serif" };
    Object.assign(this.context, style, { fillStyle: this.colour("--curve") });
    const [first, last] = [20, this.width - 20].map((left) => this.toData(left, 0)[0] / step);
    const put = (text, at) => this.context.fillText(text, this.toPixels(at, 0)[0], this.height - 5);
    for (let n = Math.ceil(first); n <= last; n++) put(Number((n * step).toPrecision(6)), n * step);
  }
}
