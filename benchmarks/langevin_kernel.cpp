// Annealed Langevin dynamics of a network 2-H-2 with relu in one fused loop, on its own random
// numbers (xoshiro128+, Box-Muller): what a sampler costs without any framework. Twice: as plain
// loops over blocks of particles, and tuned, with particles in vector registers for the whole
// trajectory and vector functions for the noise. Built by contestants.py:
//   g++ -O3 -march=native -mprefer-vector-width=512 -ffast-math -shared -fPIC -pthread
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;
#else
constexpr int kLanes = 8, kVectors = 2;
#endif
constexpr int kBlock = kLanes * kVectors;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

struct Stream {  // xoshiro128+ in every lane
    Words s[4];
    Stream(uint64_t seed) {  // splitmix64
        for (Words& word : s)
            for (int i = 0; i < kLanes; i++) {
                uint64_t z = (seed += 0x9e3779b97f4a7c15u);
                z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
                z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
                word[i] = uint32_t(z >> 32);
            }
    }
    Words next() {
        Words result = s[0] + s[3], t = s[1] << 9;
        s[2] ^= s[0], s[3] ^= s[1], s[1] ^= s[2], s[0] ^= s[3], s[2] ^= t;
        s[3] = (s[3] << 11) | (s[3] >> 21);
        return result;
    }
};

struct Unit {  // of the hidden layer: two weights in, two weights out
    float in_x, in_y, out_x, out_y;
};

// One block down all levels. bias is (levels, width): the level's embedding is folded into it.
void anneal_tuned(float* x, float* y, const std::vector<Unit>& units, const float* bias,
                  const float* exit_bias, const float* taus, int levels, int steps, Stream& rng) {
    const int width = int(units.size());
    Floats X[kVectors], Y[kVectors];
    std::memcpy(X, x, sizeof X), std::memcpy(Y, y, sizeof Y);
    for (int level = 0; level < levels; level++) {
        const float tau = taus[level], root = std::sqrt(2 * tau);
        const float* b = bias + size_t(level) * width;
        for (int step = 0; step < steps; step++) {
            Floats U[kVectors], V[kVectors];
            for (int k = 0; k < kVectors; k++)
                U[k] = Floats{} + exit_bias[0], V[k] = Floats{} + exit_bias[1];
            for (int h = 0; h < width; h++) {
                const Unit unit = units[h];
                for (int k = 0; k < kVectors; k++) {
                    Floats a = unit.in_x * X[k] + (unit.in_y * Y[k] + b[h]);
                    a = a > 0.0f ? a : Floats{};
                    U[k] += unit.out_x * a, V[k] += unit.out_y * a;
                }
            }
            float radius[kBlock], angle[kBlock], sine[kBlock], cosine[kBlock];
            for (int k = 0; k < kVectors; k++) {
                const Words a = rng.next() >> 8, c = rng.next() >> 8;
                for (int i = 0; i < kLanes; i++) {
                    radius[k * kLanes + i] = (float(int(a[i])) + 0.5f) * (1.0f / 16777216);
                    angle[k * kLanes + i] = float(int(c[i])) * (6.28318530718f / 16777216);
                }
            }
            // One function a loop, so that the compiler takes the vector versions of libmvec.
            for (int i = 0; i < kBlock; i++) radius[i] = root * std::sqrt(-2 * std::log(radius[i]));
            for (int i = 0; i < kBlock; i++) sine[i] = radius[i] * std::sin(angle[i]);
            for (int i = 0; i < kBlock; i++) cosine[i] = radius[i] * std::cos(angle[i]);
            for (int k = 0; k < kVectors; k++) {
                Floats z, w;
                std::memcpy(&z, &cosine[k * kLanes], sizeof z);
                std::memcpy(&w, &sine[k * kLanes], sizeof w);
                X[k] += tau * U[k] + z, Y[k] += tau * V[k] + w;
            }
        }
    }
    std::memcpy(x, X, sizeof X), std::memcpy(y, Y, sizeof Y);
}

// The same as plain loops over arrays, which the compiler vectorises where it can.
void anneal_plain(float* x, float* y, const std::vector<Unit>& units, const float* bias,
                  const float* exit_bias, const float* taus, int levels, int steps, Stream& rng) {
    const int width = int(units.size());
    for (int level = 0; level < levels; level++) {
        const float tau = taus[level], root = std::sqrt(2 * tau);
        const float* b = bias + size_t(level) * width;
        for (int step = 0; step < steps; step++) {
            float u[kBlock], v[kBlock];
            for (int i = 0; i < kBlock; i++) u[i] = exit_bias[0], v[i] = exit_bias[1];
            for (int h = 0; h < width; h++) {
                const Unit unit = units[h];
                const float shift = b[h];
                for (int i = 0; i < kBlock; i++) {
                    float a = unit.in_x * x[i] + unit.in_y * y[i] + shift;
                    a = a > 0 ? a : 0;
                    u[i] += unit.out_x * a, v[i] += unit.out_y * a;
                }
            }
            for (int k = 0; k < kVectors; k++) {
                const Words r = rng.next() >> 8, s = rng.next() >> 8;
                for (int j = 0, i = k * kLanes; j < kLanes; i++, j++) {
                    const float uniform = (float(int(r[j])) + 0.5f) * (1.0f / 16777216);
                    const float angle = float(int(s[j])) * (6.28318530718f / 16777216);
                    const float radius = root * std::sqrt(-2 * std::log(uniform));
                    x[i] += tau * u[i] + radius * std::cos(angle);
                    y[i] += tau * v[i] + radius * std::sin(angle);
                }
            }
        }
    }
}

}  // namespace

// Moves the points xy (num, 2) down the levels; returns the seconds that it took.
extern "C" double anneal(float* xy, int num, const float* in, const float* bias, const float* out,
                         const float* exit_bias, int width, const float* taus, int levels,
                         int steps, int threads, uint64_t seed, int tuned) {
    const auto start = std::chrono::steady_clock::now();
    const int blocks = (num + kBlock - 1) / kBlock;
    std::vector<Unit> units(width);
    for (int h = 0; h < width; h++)  // in (width, 2), out (2, width)
        units[h] = {in[2 * h], in[2 * h + 1], out[h], out[width + h]};
    std::vector<float> x(blocks * kBlock), y(blocks * kBlock);
    for (int i = 0; i < num; i++) x[i] = xy[2 * i], y[i] = xy[2 * i + 1];
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; t++)
        pool.emplace_back([&, t] {
            for (int block = t; block < blocks; block += threads) {
                Stream rng(seed * 1000003u + block);
                auto* run = tuned ? anneal_tuned : anneal_plain;
                run(&x[block * kBlock], &y[block * kBlock], units, bias, exit_bias, taus, levels,
                    steps, rng);
            }
        });
    for (std::thread& thread : pool) thread.join();
    for (int i = 0; i < num; i++) xy[2 * i] = x[i], xy[2 * i + 1] = y[i];
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
