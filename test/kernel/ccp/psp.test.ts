/** The driver of the secure processor before a mailbox that answers as it is told: what is asked, what failures come to, which pages are lost. */
import { afterEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { Psp } from '../../../src/kernel/ccp/psp.ts';
import { errnoOf } from '../kvm/snp-rules.ts';

const EIO = 5;
const ENOMEM = 12;
const EFAULT = 14;
const EBUSY = 16;
const ENODEV = 19;
const ETIMEDOUT = 110;
const INIT_EX = 0x85;
const DF_FLUSH = 0x84;
const RECLAIM = 0xc7;
const STATUS = 0x83;
const NO_ANSWER = -1;

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
      expect(attempt).toThrow(`${name}: firmware says ALREADY_OWNED`);
      expect([psp.initialised, held()]).toEqual([false, 0]);
    });

  it('is ENOMEM without a frame for its command buffer, and asks nothing', () => {
    const { psp, asked } = driver();
    exhaust();
    expect(errnoOf(() => psp.initialise())).toBe(ENOMEM);
    expect(asked).toEqual([]);
  });

  it('has no processor to ask before and after: ENODEV', () => {
    const { psp, asked } = driver();
    const ask = (): number[] => [psp.command(STATUS), psp.exchange(STATUS, bytes())];
    expect(ask()).toEqual([-ENODEV, -ENODEV]);
    expect(asked).toEqual([]);
    psp.initialise();
    psp.shutDown();
    expect(ask()).toEqual([-ENODEV, -ENODEV]);
    expect(held()).toBe(0);
  });

  it('takes a processor that leaves a command unanswered for dead: ETIMEDOUT, then EBUSY, and nothing is asked', () => {
    const { psp, asked, answers } = driver();
    psp.initialise();
    answers.set(STATUS, NO_ANSWER);
    expect(psp.command(STATUS)).toBe(-ETIMEDOUT);
    answers.clear();
    asked.splice(0);
    const before = held();
    expect([psp.command(STATUS), psp.exchange(STATUS, bytes()), psp.tell(STATUS, bytes(), bytes)]).toEqual([
      -EBUSY,
      -EBUSY,
      -EBUSY,
    ]);
    expect([held(), psp.leakedPages]).toEqual([before, 0]);
    // The page for the answer cannot be had back.
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(-EFAULT);
    expect([held(), psp.leakedPages]).toEqual([before + 1, 1]);
    expect(asked).toEqual([]);
  });

  it('loses the page of a command that is left unanswered', () => {
    const { psp, answers } = driver();
    psp.initialise();
    answers.set(STATUS, NO_ANSWER);
    expect(psp.exchange(STATUS, bytes())).toBe(-ETIMEDOUT);
    expect(psp.leakedPages).toBe(1);
  });

  it('is not initialised where a command is left unanswered: ETIMEDOUT', () => {
    const { psp, answers } = driver();
    answers.set(INIT_EX, NO_ANSWER);
    expect(errnoOf(() => psp.initialise())).toBe(ETIMEDOUT);
    expect([psp.initialised, held()]).toEqual([false, 0]);
  });

  it('is ENOMEM where there is no frame for what a command needs, and asks nothing', () => {
    const { psp, asked } = driver();
    psp.initialise();
    exhaust();
    asked.splice(0);
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(-ENOMEM);
    expect(psp.exchange(STATUS, bytes())).toBe(-ENOMEM);
    expect(psp.tell(STATUS, bytes(), bytes)).toBe(-ENOMEM);
    expect(psp.allocatePage()).toBe(-1);
    expect(asked).toEqual([]);
  });

  it('hands on what firmware answers, and nothing where it refuses', () => {
    const { psp, answers } = driver();
    psp.initialise();
    const into = bytes().fill(0xaa);
    answers.set(STATUS, 0x16);
    expect(psp.ask(STATUS, into, bytes)).toBe(0x16);
    expect(into).toEqual(bytes().fill(0xaa));
    answers.clear();
    expect(psp.ask(STATUS, into, bytes)).toBe(0);
    expect(into).toEqual(bytes());
  });

  it('loses a page that firmware does not give back, and no other: EFAULT', () => {
    const { psp, answers } = driver();
    psp.initialise();
    const before = held();
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(0);
    expect([psp.leakedPages, held()]).toEqual([0, before]);
    answers.set(RECLAIM, 0x1a);
    expect(psp.ask(STATUS, bytes(), bytes)).toBe(-EFAULT);
    expect(psp.exchange(STATUS, bytes())).toBe(-EFAULT);
    expect([psp.leakedPages, held()]).toEqual([2, before + 2]);
  });
});
