/** A host that remaps, aliases, replays and rewrites an SNP guest's pages between its instructions: the guest never takes what is not its own for its own. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { hlt, load, store } from './assembler.ts';
import { CODE, DATA, HANDLERS } from './guest-bench.ts';
import { ASID, SnpBench } from './snp-bench.ts';

const PAGES = 4;
const NPF = 0x400;
const HLT = 0x78;

type Attack =
  | { readonly kind: 'remap'; readonly page: number; readonly to: number }
  | { readonly kind: 'rewrite'; readonly page: number; readonly bytes: Uint8Array; readonly at: number }
  | { readonly kind: 'replay'; readonly page: number }
  | { readonly kind: 'save'; readonly page: number }
  | { readonly kind: 'give back'; readonly page: number; readonly gpaOf: number }
  | { readonly kind: 'foreign frame'; readonly page: number }
  | { readonly kind: 'guest writes'; readonly page: number; readonly value: bigint }
  | { readonly kind: 'guest reads'; readonly page: number };

const page = fc.integer({ min: 0, max: PAGES - 1 });
const attack: fc.Arbitrary<Attack> = fc.oneof(
  fc.record({ kind: fc.constant('remap' as const), page, to: page }),
  fc.record({
    kind: fc.constant('rewrite' as const),
    page,
    bytes: fc.uint8Array({ minLength: 1, maxLength: 32 }),
    at: fc.integer({ min: 0, max: 4000 }),
  }),
  fc.record({ kind: fc.constant('save' as const), page }),
  fc.record({ kind: fc.constant('replay' as const), page }),
  fc.record({ kind: fc.constant('give back' as const), page, gpaOf: page }),
  fc.record({ kind: fc.constant('foreign frame' as const), page }),
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('guest writes' as const),
      page,
      value: fc.bigInt({ min: 1n, max: (1n << 64n) - 1n }),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('guest reads' as const), page }) },
);

const SHARED_STATE = { assigned: false, large: false, immutable: false, gpa: 0, asid: 0 };

class HostileBench extends SnpBench {
  readonly #frames: Pfn[] = [];
  readonly #saved = new Map<number, Uint8Array>();

  begin(): void {
    this.gate(29, HANDLERS);
    this.load([hlt()], HANDLERS);
    // One load at CODE, one store 64 bytes on; each ends in HLT.
    this.load([load('rbx', 'rdi'), hlt()]);
    this.load([store('rdi', 'rbx'), hlt()], CODE + 64);
    this.launch();
    for (let i = 0; i < PAGES; i++) this.#frames.push(this.frameOf((DATA >>> 12) + i));
  }

  gpa(index: number): number {
    return DATA + index * 4096;
  }
  spaOfPage(index: number): Spa {
    return (this.#frames[index]! * 4096) as Spa;
  }

  /** Runs one of the two pieces. True: the access was done; false: a fault of any kind came first. */
  access(what: 'load' | 'store', index: number, value = 0n): boolean {
    this.setVmsaLong(0x178, BigInt(what === 'load' ? CODE : CODE + 64));
    this.setVmsaLong(0x338, BigInt(this.gpa(index)));
    this.setVmsaLong(0x318, value);
    this.flush();
    const code = this.run();
    if (code === NPF) return false;
    expect(code).toBe(HLT);
    const rip = Number(this.vmsaLong(0x178));
    return rip !== HANDLERS + 1;
  }

  attack(step: Attack): void {
    const gfn = (DATA >>> 12) + step.page;
    const at = this.spaOfPage(step.page);
    switch (step.kind) {
      case 'remap':
        this.map(gfn, this.#frames[step.to]!, 7n);
        return;
      case 'foreign frame':
        this.map(gfn, this.frame(), 7n);
        return;
      case 'save': {
        const bytes = new Uint8Array(4096);
        this.memory.read(at, bytes);
        this.#saved.set(step.page, bytes);
        return;
      }
      case 'rewrite':
        if (this.rmp.rmpupdate(at, SHARED_STATE) === 0) this.memory.write((at + step.at) as Spa, step.bytes);
        return;
      case 'replay':
        if (this.rmp.rmpupdate(at, SHARED_STATE) === 0 && this.#saved.has(step.page))
          this.memory.write(at, this.#saved.get(step.page)!);
        return;
      case 'give back':
        this.rmp.rmpupdate(at, { ...SHARED_STATE, assigned: true, asid: ASID, gpa: this.gpa(step.gpaOf) });
        return;
    }
  }
}

describe('whatever a host does to an SNP guest’s pages', () => {
  it('a load of the guest gives what it stored there last, or faults', () => {
    fc.assert(
      fc.property(fc.array(attack, { minLength: 4, maxLength: 30 }), (steps) => {
        const bench = new HostileBench();
        try {
          bench.begin();
          const held = new Array<bigint>(PAGES).fill(0n);
          for (const step of steps) {
            if (step.kind === 'guest writes') {
              if (bench.access('store', step.page, step.value)) held[step.page] = step.value;
            } else if (step.kind === 'guest reads') {
              if (bench.access('load', step.page)) expect(bench.vmsaLong(0x318)).toBe(held[step.page]);
            } else bench.attack(step);
          }
        } finally {
          bench.close();
        }
      }),
      { numRuns: 150 },
    );
  });

  it('and without attacks no access faults: the test above does not pass for that reason', () => {
    const bench = new HostileBench();
    bench.begin();
    for (let i = 0; i < PAGES; i++) {
      expect(bench.access('store', i, BigInt(i + 100))).toBe(true);
      expect(bench.access('load', i)).toBe(true);
      expect(bench.vmsaLong(0x318)).toBe(BigInt(i + 100));
    }
    bench.attack({ kind: 'remap', page: 0, to: 1 });
    expect(bench.access('load', 0)).toBe(false);
    bench.close();
  });
});
