/** Time, entropy and ids are handed in, so that a run with a seed repeats byte for byte. */
import { requireKind } from './option-checks.ts';

export interface Entropy {
  /** Fills `bytes` with random bytes. */
  fill(bytes: Uint8Array): void;
  /** A number in [0, limit), limit ≤ 2^32. */
  below(limit: number): number;
}

/** RangeError: `got` is there, and no Entropy. */
export function requireEntropy(path: string, got: unknown): void {
  requireKind(path, got, isEntropy, 'an Entropy');
}
const isEntropy = (value: unknown): boolean => {
  const { fill, below } = (value ?? {}) as Partial<Entropy>;
  return typeof fill === 'function' && typeof below === 'function';
};

/** xoshiro128** (Blackman and Vigna), seeded by splitmix32: repeats for a seed; not for keys that anybody must not guess. */
export function seededEntropy(seed: number): Entropy {
  let mix = seed | 0;
  const splitmix = (): number => {
    mix = (mix + 0x9e3779b9) | 0;
    let z = mix;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return z ^ (z >>> 16);
  };
  let [a, b, c, d] = [splitmix(), splitmix(), splitmix(), splitmix()];
  const rotate = (x: number, k: number): number => (x << k) | (x >>> (32 - k));
  const next = (): number => {
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9) >>> 0;
    const t = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = rotate(d, 11);
    return result;
  };
  return {
    fill(bytes) {
      for (let i = 0; i < bytes.length; i++) bytes[i] = next();
    },
    below: (limit) => Math.floor((next() / 2 ** 32) * limit),
  };
}

/** The platform's generator. */
export function platformEntropy(): Entropy {
  const word = new Uint32Array(1);
  return {
    fill(bytes) {
      for (let i = 0; i < bytes.length; i += 65536) crypto.getRandomValues(bytes.subarray(i, i + 65536));
    },
    below(limit) {
      crypto.getRandomValues(word);
      return Math.floor((word[0]! / 2 ** 32) * limit);
    },
  };
}
