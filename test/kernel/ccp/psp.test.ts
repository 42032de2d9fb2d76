/** The driver of the secure processor before a mailbox that answers as it is told: what is asked, what failures come to, which pages are lost. */
import { afterEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { Psp } from '../../../src/kernel/ccp/psp.ts';
import { errnoOf } from '../kvm/snp-rules.ts';

const EIO = 5;
const ENOMEM = 12;
const INIT_EX = 0x85;
const DF_FLUSH = 0x84;
const RECLAIM = 0xc7;
const STATUS = 0x83;
const RESOURCE_LIMIT = 0x17;
const NO_FW_CALL = 0xffff_ffff;

let memory: HostMemory;
afterEach(() => memory.close());

function driver() {
  memory = HostMemory.create({ bytes: 4 << 20, trace: new Trace(), rmp: true });
  const asked: number[] = [];
  const answers = new Map<number, number>();
  const execute = (command: number, buffer: Spa): number => {
    asked.push(command);
    // The page is in state Reclaim then, whatever is answered.
    if (command === RECLAIM) {
      const frame = Number(memory.load64(buffer) / 4096n) as Pfn;
      memory.rmp!.setEntry(frame, { ...memory.rmp!.entry(frame), immutable: false });
    }
    return answers.get(command) ?? 0;
  };
  const psp = new Psp(memory, { execute, cachesWrittenBack: () => {} });
  return { psp, asked, answers };
}

/** No frame is left for anybody. */
function exhaust(): void {
  while (memory.allocate(0, memory.owner('hog')) >= 0);
}
const held = (): number => memory.leaks().reduce((sum, { frames }) => sum + frames, 0);
const bytes = () => new Uint8Array(16);

describe('the driver of the secure processor', () => {
  it('initialises SNP once: SNP_INIT_EX, then SNP_DF_FLUSH', () => {
    const { psp, asked } = driver();
    psp.initialise();
    psp.initialise();
    expect(asked).toEqual([INIT_EX, DF_FLUSH]);
    expect(psp.initialised).toBe(true);
    psp.shutDown();
    psp.shutDown();
    expect(asked).toEqual([INIT_EX, DF_FLUSH, DF_FLUSH, 0x86]);
    expect(held()).toBe(0);
  });

  for (const [command, name] of [
    [INIT_EX, 'SNP_INIT_EX'],
    [DF_FLUSH, 'SNP_DF_FLUSH'],
  ] as const)
    it(`is not initialised where ${name} fails: EIO that names it, and no frame is kept`, () => {
      const { psp, answers } = driver();
      answers.set(command, 5);
      const attempt = (): void => psp.initialise();
      expect(errnoOf(attempt)).toBe(EIO);
      expect(attempt).toThrow(`${name}: firmware status 0x5`);
      expect([psp.initialised, held()]).toEqual([false, 0]);
    });

  it('is ENOMEM without a frame for its command buffer, and asks nothing', () => {
    const { psp, asked } = driver();
    exhaust();
    expect(errnoOf(() => psp.initialise())).toBe(ENOMEM);
    expect(asked).toEqual([]);
  });

  it('has no firmware to ask before', () => {
    const { psp, asked } = driver();
    expect(psp.command(STATUS) >>> 0).toBe(NO_FW_CALL);
    expect(asked).toEqual([]);
  });

  it('lacks resources where there is no frame for what a command needs, and asks nothing', () => {
    const { psp, asked } = driver();
    psp.initialise();
    exhaust();
    asked.splice(0);
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(RESOURCE_LIMIT);
    expect(psp.exchange(STATUS, bytes())).toBe(RESOURCE_LIMIT);
    expect(psp.tell(STATUS, bytes(), bytes)).toBe(RESOURCE_LIMIT);
    expect(psp.allocatePage()).toBe(-1);
    expect(asked).toEqual([]);
  });

  it('loses a page that firmware does not give back, and no other', () => {
    const { psp, answers } = driver();
    psp.initialise();
    const before = held();
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(0);
    expect([psp.leakedPages, held()]).toEqual([0, before]);
    answers.set(RECLAIM, 0x1a);
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(0);
    expect(psp.exchange(STATUS, bytes())).toBe(0);
    expect([psp.leakedPages, held()]).toEqual([2, before + 2]);
  });
});
