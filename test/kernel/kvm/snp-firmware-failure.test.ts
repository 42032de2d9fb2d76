/**
 * Firmware fails once, at every point of a guest's whole life and of /dev/sev at which the host asks it: whatever call it was, a walk of the whole RMP then finds every
 * page the host's again, but for what firmware itself would not give back.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Trace } from '../../../src/base/trace.ts';
import { SecureProcessor } from '../../../src/hardware/asp/secure-processor.ts';
import { Chip, wrapVlek } from '../../../src/hardware/chip.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { Psp } from '../../../src/kernel/ccp/psp.ts';
import { GhcbBench } from './ghcb-bench.ts';
import { GuestMessages } from './guest-messages.ts';
import { SECRETS, SHARED, SnpVm } from './snp-bench.ts';
import { errnoOf, expectAllBack } from './snp-rules.ts';

const EIO = 5;
const HWERROR_PLATFORM = 0x13;
const INVALID_PAGE_STATE = 0x1a;

/** What of a life the host asks firmware for, by name and number; pages that are lost for good when one execution of it fails. */
const COMMANDS: Readonly<Record<string, readonly [number: number, lost: number]>> = {
  SNP_GCTX_CREATE: [0x93, 0],
  SNP_LAUNCH_START: [0xa0, 0],
  SNP_ACTIVATE: [0x91, 0],
  SNP_LAUNCH_UPDATE: [0xa1, 0],
  SNP_LAUNCH_FINISH: [0xa2, 0],
  SNP_GUEST_REQUEST: [0x94, 0],
  PLATFORM_STATUS: [0x04, 0],
  GET_ID: [0x0c, 0],
  SNP_PLATFORM_STATUS: [0x83, 0],
  SNP_COMMIT: [0xcb, 0],
  SNP_CONFIG: [0xc9, 0],
  SNP_VLEK_LOAD: [0xcd, 0],
  SNP_PAGE_RECLAIM: [0xc7, 1],
  SNP_DECOMMISSION: [0x90, 1],
};

/** A life in which calls may fail. `begin` is told of the machine before the first one. */
function live(begin: (snp: SnpVm) => void): SnpVm {
  let snp: SnpVm | undefined;
  let bench: GhcbBench | undefined;
  errnoOf(() => {
    bench = new GhcbBench({
      keepOpen: true,
      prepare: (machine) => {
        snp = machine;
        begin(machine);
      },
      launch: (machine) => {
        errnoOf(() => machine.update(1, 0, 0x2000));
        errnoOf(() => machine.update(5, SECRETS, 4096));
      },
    }).register();
  });
  const { process, chip, sevFd } = snp!;
  if (bench !== undefined) ask(bench);
  const blob = wrapVlek({
    sticks: new Uint8Array(384).fill(3),
    tcb: chip.reportedTcb,
    wrappingKey: chip.vlekWrappingKey(chip.reportedTcb),
    iv: new Uint8Array(12),
  });
  const vlek = new Uint8Array(16);
  vlek.set([16, 0, 0, 0, 0, 0, 0, 0, 1]);
  for (const [cmd, data] of [
    [1, new Uint8Array(12)],
    [7, new Uint8Array(128)],
    [9, new Uint8Array(32)],
    [10, new Uint8Array(0)],
    [11, new Uint8Array(64)],
    [12, vlek],
  ] as const)
    errnoOf(() => process.sevIssueCommand(sevFd, { cmd, data, blob }));
  process.exit();
  return snp!;
}

/** Two messages of the guest; one without its secrets page has none. */
function ask(bench: GhcbBench): void {
  for (let i = 0; i < 2; i++) {
    try {
      bench.write(SHARED, new GuestMessages(bench.snp).reportRequest(new Uint8Array(64)));
    } catch {
      return;
    }
    bench.request({ code: 0x8000_0011n, info1: BigInt(SHARED), info2: BigInt(SHARED + 0x1000) });
  }
}

/** How often a life without failures asks for each command. */
function countCalls(): Map<string, number> {
  const calls = new Map<string, number>();
  const snp = live(({ kernel }) => {
    kernel.trace.listen(({ who, kind, what }) => {
      if (who === 'firmware' && kind === 'call') calls.set(what, (calls.get(what) ?? 0) + 1);
    });
  });
  expectAllBack(snp.kernel);
  snp.kernel.close();
  return calls;
}

const calls = countCalls();

describe('firmware that fails once', () => {
  it('is asked in that life for every command that the host has, but for those of SEV without SNP', () => {
    // At the end, when the machine is closed.
    const atTheEnd = ['SNP_DF_FLUSH', 'SNP_SHUTDOWN_EX'];
    expect([...calls.keys()].sort()).toEqual([...Object.keys(COMMANDS), ...atTheEnd].sort());
    const root = new URL('../../../src/kernel/', import.meta.url);
    const used = new Set(
      readdirSync(root, { recursive: true, encoding: 'utf8' })
        .filter((path) => path.endsWith('.ts'))
        .flatMap((path) => readFileSync(new URL(path, root), 'utf8').match(/(?<=\bSEV_CMD\.)\w+/g) ?? []),
    );
    const withoutSnp = [
      'PLATFORM_RESET',
      'PEK_GEN',
      'PEK_CSR',
      'PDH_GEN',
      'PDH_CERT_EXPORT',
      'PEK_CERT_IMPORT',
    ];
    expect([...used].sort()).toEqual([...calls.keys(), 'SNP_INIT_EX', ...withoutSnp].sort());
  });

  for (const [name, [command, lost]] of Object.entries(COMMANDS))
    for (let nth = 1; nth <= (calls.get(name) ?? 0); nth++)
      it.each([HWERROR_PLATFORM, INVALID_PAGE_STATE])(`${name}, the ${nth}th, with status %#x`, (status) => {
        const snp = live(({ kernel }) => kernel.secureProcessor!.inject({ command, nth, status }));
        expectAllBack(snp.kernel, lost);
        snp.kernel.close();
      });

  it('at SNP_DECOMMISSION keeps the guest its ASID: nobody else gets it', () => {
    const EBUSY = 16;
    const { kernel, process, vm } = new GhcbBench({ keepOpen: true }).snp;
    const asids = vm.sev!.host.esAsids;
    while (errnoOf(() => asids.take()) === 0);
    kernel.secureProcessor!.inject({ command: 0x90, nth: 1, status: HWERROR_PLATFORM });
    process.exit();
    expect(errnoOf(() => asids.take())).toBe(EBUSY);
    kernel.close();
  });

  it.each([
    ['SNP_LAUNCH_START', 0xa0],
    ['SNP_ACTIVATE', 0x91],
  ])('at %s and at the DECOMMISSION behind it: EIO, and the context page is lost', (_name, command) => {
    const snp = new SnpVm({ keepOpen: true, memory: 8 << 20 }).init();
    const { kernel } = snp;
    for (const failing of [command, 0x90])
      kernel.secureProcessor!.inject({ command: failing, nth: 1, status: HWERROR_PLATFORM });
    expect(errnoOf(() => snp.start())).toBe(EIO);
    expect(kernel.psp!.leakedPages).toBe(1);
    snp.process.exit();
    expectAllBack(kernel, 1);
    kernel.close();
  });

  it('a VMSA that RMPUPDATE does not give back is lost', () => {
    const snp = new GhcbBench({ keepOpen: true }).snp;
    const { kernel } = snp;
    const rmp = kernel.memory.rmp!;
    const vmsa = Array.from({ length: kernel.memory.frameCount }, (_, frame) => frame as Pfn).find(
      (frame) => rmp.entry(frame).gpa === 0xffff_ffff_f000,
    )!;
    const { rmpupdate } = rmp;
    rmp.rmpupdate = (at, state) => (at === vmsa * 4096 ? 4 : rmpupdate.call(rmp, at, state));
    snp.process.exit();
    expectAllBack(kernel, 1);
    expect(kernel.psp!.isLeaked(vmsa)).toBe(true);
    kernel.close();
  });

  it('at SNP_INIT_EX, or at the DF_FLUSH behind it, leaves a machine without SNP and no page held', () => {
    for (const [command, initialised] of [
      [0x85, false],
      [0x84, true],
    ] as const) {
      const { memory, asp, psp } = machine();
      asp.inject({ command, nth: 1, status: HWERROR_PLATFORM });
      expect(errnoOf(() => psp.initialise())).toBe(EIO);
      expect(psp.initialised).toBe(false);
      expect(memory.rmp!.initialised).toBe(initialised);
      expect(memory.leaks()).toEqual([]);
      expect(statesOutsideOfTheRmp(memory)).toEqual(new Set(['hypervisor']));
      memory.close();
    }
  });

  it('at SNP_SHUTDOWN_EX, or at the DF_FLUSH before it, leaves no page held', () => {
    for (const command of [0x86, 0x84]) {
      const { memory, asp, psp } = machine();
      psp.initialise();
      asp.inject({ command, nth: 1, status: HWERROR_PLATFORM });
      psp.shutDown();
      expect(memory.leaks()).toEqual([]);
      expect(statesOutsideOfTheRmp(memory)).toEqual(new Set(['hypervisor']));
      memory.close();
    }
  });

  const machine = () => {
    const trace = new Trace();
    const entropy = seededEntropy(1);
    const memory = HostMemory.create({ bytes: 8 << 20, trace, rmp: true });
    const chip = new Chip({ generation: 'milan', entropy });
    const asp = new SecureProcessor({ memory, trace, entropy, chip });
    return { memory, asp, psp: new Psp(memory, asp) };
  };
  const statesOutsideOfTheRmp = (memory: HostMemory): ReadonlySet<string> => {
    const rmp = memory.rmp!;
    const frames = Array.from({ length: memory.frameCount }, (_, frame) => frame as Pfn).filter(
      (frame) => frame * 4096 < (rmp.base as Spa) || frame * 4096 >= rmp.end,
    );
    return new Set(frames.map((frame) => rmp.state(frame)));
  };
});
