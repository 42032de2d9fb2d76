import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { KvmRun } from '../../src/abi/kvm-run.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { Trace, type TraceEvent } from '../../src/base/trace.ts';
import { createKernel, type Kernel } from '../../src/kernel/kvm/index.ts';
import type { Process } from '../../src/kernel/process.ts';
import { CertificateSource } from '../../src/vmm/confidential-guest/certificate-source.ts';
import { updateCertificates } from '../../src/vmm/confidential-guest/certificate-updater.ts';
import { DebugExit } from '../../src/vmm/devices/debug-exit.ts';
import { ResetControl } from '../../src/vmm/devices/reset-control.ts';
import { VmmError } from '../../src/vmm/error.ts';
import { AddressSpace } from '../../src/vmm/memory/address-space.ts';
import type { Conversion } from '../../src/vmm/memory/convert-memory.ts';
import { IoDispatch } from '../../src/vmm/memory/io-dispatch.ts';
import { containerRegion, ioRegion } from '../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../src/vmm/memory/memory-topology.ts';
import { RunLoop } from '../../src/vmm/run-loop.ts';
import { type ScriptedRun, ScriptedVcpu } from './recording-process.ts';

const DONE: Conversion = { result: 0, outcome: 'done' };

const io = (direction: number, port: number, size: number, values: number[]): ScriptedRun => ({
  fill: (run) => {
    run.exitReason = 2;
    run.ioDirection = direction;
    run.ioPort = port;
    run.ioSize = size;
    run.ioCount = values.length;
    run.ioDataOffset = 0x1000;
    values.forEach((value, index) => {
      run.setIoValue(value, index);
    });
  },
});
const out = (port: number, ...values: number[]): ScriptedRun => io(1, port, 1, values);
const exit = (reason: number, fill: (run: KvmRun) => void = () => {}): ScriptedRun => ({
  fill: (run) => {
    run.exitReason = reason;
    fill(run);
  },
});
/** type u32 at 0x20, ndata at 0x24, data at 0x28 */
const systemEvent = (type: number, data: bigint): ScriptedRun =>
  exit(24, ({ bytes }) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    view.setUint32(0x20, type, true);
    view.setUint32(0x24, 1, true);
    view.setBigUint64(0x28, data, true);
  });
const leave = out(0xf4, 0);
const hlt = exit(5);
const interrupted: ScriptedRun = { returns: -4 };
const fault = (gpa: number, flags: number, more: ScriptedRun = {}): ScriptedRun => ({
  returns: -14,
  fill: (run) => {
    run.exitReason = 39;
    run.memoryFaultGpaNumber = gpa;
    run.memoryFaultFlags = BigInt(flags);
    run.memoryFaultSizeNumber = 0x1000;
  },
  ...more,
});
const hypercall = (...args: bigint[]): ScriptedRun =>
  exit(3, (run) => {
    run.hypercallNrNumber = 12;
    args.forEach((value, index) => {
      run.setHypercallArg(index, value);
    });
    run.hypercallRet = 77n;
  });

/** vCPUs that follow a script each; its last step repeats. */
function setUp(
  scripts: ScriptedRun[][],
  convert: (...request: unknown[]) => Conversion = () => DONE,
  options: { preFaultSupported?: boolean; certificates?: CertificateSource } = {},
) {
  const order: number[] = [];
  const vcpus = scripts.map(
    (script, id) =>
      new ScriptedVcpu(id, (vcpu) => {
        order.push(id);
        return script[Math.min(vcpu.runs, script.length) - 1]!;
      }),
  );
  const debugExit = new DebugExit();
  const ends: number[] = [];
  const topology = new MemoryTopology();
  const ports = new AddressSpace(topology, 'ports', containerRegion('ports', 0x10000));
  ports.add(ioRegion('debug-exit', 4, debugExit), 0xf4);
  const resetControl = new ResetControl();
  ports.add(ioRegion('reset-control', 1, resetControl), 0xcf9);
  const writes: [number, number, number][] = [];
  const device = {
    maxAccessSize: 4 as const,
    read: (offset: number, size: number) => (size === 4 ? 0x89abcdef : 0x10 + offset),
    write: (offset: number, value: number, size: number) => {
      writes.push([offset, value, size]);
    },
  };
  ports.add(ioRegion('device', 8, device), 0x100);
  const memory = new AddressSpace(topology, 'memory', containerRegion('memory', 2 ** 52));
  memory.add(ioRegion('device', 0x1000, device), 0xd0000000);
  const trace = new Trace();
  const loop = new RunLoop({
    vcpus,
    ports: new IoDispatch(ports, { unassigned: 0xff }),
    memory: new IoDispatch(memory, { unassigned: 0 }),
    debugExit,
    resetControl,
    reset: () => {
      throw new VmmError('cpus are not resettable, terminating');
    },
    endOfInterrupt: (vector) => void ends.push(vector),
    convert,
    preFaultSupported: options.preFaultSupported ?? true,
    dirtyRingFull: () => {},
    lastReport: () => 'what went wrong',
    flushConsole: () => {},
    certificates: options.certificates,
    trace,
  });
  return { loop, vcpus, order, writes, trace, ends };
}

afterEach(() => vi.useRealTimers());

describe('a run refuses', () => {
  it.each([
    ['timeoutMs', Number.NaN, 'timeoutMs: got NaN, want a number from 0'],
    ['timeoutMs', -1, 'timeoutMs: got -1, want a number from 0'],
    ['timeoutMs', '5', 'timeoutMs: got 5, want a number from 0'],
    ['signal', {}, 'signal: got [object Object], want an AbortSignal'],
    ['timeout', 5, 'run.timeout: got a field that is none, want timeoutMs, signal, clock'],
  ])('%s %j, before any vCPU runs', async (option, got, refusal) => {
    const { loop, order } = setUp([[leave]]);
    await expect(loop.run({ [option]: got })).rejects.toThrow(new RangeError(refusal));
    expect(order).toEqual([]);
  });
});

describe('a run ends', () => {
  it.each([
    ['by the byte that the guest writes to port 0xf4', out(0xf4, 7), { reason: 'debug-exit', code: 7 }],
    [
      'by a reset that cannot be',
      out(0xcf9, 6),
      { reason: 'shutdown', code: 125, message: 'vCPU 0: cpus are not resettable, terminating' },
    ],
    [
      'by the lowest byte of a wider write',
      io(1, 0xf4, 4, [0x12345678]),
      { reason: 'debug-exit', code: 0x78 },
    ],
    ['by the first of several bytes', io(1, 0xf4, 1, [3, 4]), { reason: 'debug-exit', code: 3 }],
    ['when the only vCPU halts', hlt, { reason: 'hlt', code: 0 }],
    ['with a triple fault', exit(8), { reason: 'shutdown', code: 125, message: 'vCPU 0: triple fault' }],
    [
      'with an internal error of KVM, its name and data',
      exit(17, (run) => {
        run.internalErrorSuberror = 3;
        run.internalErrorNdata = 2;
        run.setInternalErrorData(0, 0x80000b0en);
        run.setInternalErrorData(1, 1n);
      }),
      {
        reason: 'error',
        code: 125,
        message: 'vCPU 0: KVM internal error: delivery of an event failed (0x80000b0e, 0x1)',
      },
    ],
    [
      'when the hardware refuses to enter',
      exit(9, (run) => (run.failEntryReason = 0xffffffffn)),
      { reason: 'error', code: 125, message: 'vCPU 0: KVM: entry failed, hardware error 0xffffffff' },
    ],
    [
      'on an exit that nobody serves',
      exit(99),
      { reason: 'error', code: 125, message: 'vCPU 0: KVM: unhandled exit reason 99' },
    ],
    [
      'when an SNP guest asks to be terminated by the GHCB MSR, set 1 and code 4',
      systemEvent(6, 0x4_1100n),
      {
        reason: 'error',
        code: 125,
        message: 'vCPU 0: the guest asked to be terminated: reason 1:4 (CPUID failed)',
      },
    ],
    [
      'on a system event of another type',
      systemEvent(2, 0n),
      { reason: 'error', code: 125, message: 'vCPU 0: system event 2' },
    ],
    [
      'on an errno of KVM_RUN',
      { returns: -12 },
      { reason: 'error', code: 125, message: 'vCPU 0: KVM_RUN failed: ENOMEM' },
    ],
    [
      'on EFAULT that does not say which page',
      { returns: -14, fill: (run: KvmRun) => (run.exitReason = 0) },
      { reason: 'error', code: 125, message: 'vCPU 0: KVM_RUN failed: EFAULT' },
    ],
    [
      'on a poisoned page, which no conversion cures',
      fault(0x5000, 8, { returns: -133 }),
      { reason: 'error', code: 125, message: 'vCPU 0: KVM_RUN failed: EHWPOISON at gpa 0x5000' },
    ],
    [
      'on a hypercall that is not MAP_GPA_RANGE',
      exit(3, (run) => (run.hypercallNrNumber = 5)),
      { reason: 'error', code: 125, message: 'vCPU 0: hypercall: got 5, want 12 (MAP_GPA_RANGE)' },
    ],
  ] as [string, ScriptedRun, object][])('%s', async (_, step, end) => {
    const { loop } = setUp([[step]]);
    expect(await loop.run()).toEqual(end);
  });

  it('stays ended', async () => {
    const { loop, vcpus } = setUp([[out(0xf4, 7)]]);
    await loop.run();
    expect(await loop.run()).toEqual({ reason: 'debug-exit', code: 7 });
    expect(vcpus[0]!.runs).toBe(1);
  });
});

describe('port I/O', () => {
  it('reaches a device with offset, value and size', async () => {
    const { loop, writes } = setUp([[io(1, 0x104, 2, [0xbeef]), io(1, 0x101, 1, [1, 2]), leave]]);
    await loop.run();
    expect(writes).toEqual([
      [4, 0xbeef, 2],
      [1, 1, 1],
      [1, 2, 1],
    ]);
  });

  it.each([
    ['a device answers', 0x102, 1, [0x12]],
    ['a wide answer is unsigned', 0x100, 4, [0x89abcdef]],
    ['an unassigned port reads all ones', 0x60, 1, [0xff]],
    ['four unassigned ports read all ones', 0x60, 4, [0xffffffff]],
    ['an access that leaves a device is cut', 0x106, 4, [0xffff0016]],
    ['a string read asks each time', 0x103, 1, [0x13, 0x13, 0x13]],
  ])('in: %s', async (_, port, size, values) => {
    const { loop, vcpus } = setUp([
      [
        io(
          0,
          port,
          size,
          values.map(() => 0),
        ),
        leave,
      ],
    ]);
    const got: number[] = [];
    const run = vcpus[0]!.run.bind(vcpus[0]);
    vcpus[0]!.run = () => {
      if (vcpus[0]!.runs === 1) got.push(...values.map((_value, index) => vcpus[0]!.kvmRun.ioValue(index)));
      return run();
    };
    expect(await loop.run()).toEqual({ reason: 'debug-exit', code: 0 });
    expect(got).toEqual(values);
    expect(loop.exits.io).toBe(2);
  });
});

describe('memory-mapped I/O', () => {
  const mmio = (address: bigint, length: number, data: number[], isWrite: number): ScriptedRun =>
    exit(6, (run) => {
      run.mmioPhysAddr = address;
      run.mmioLen = length;
      run.mmioIsWrite = isWrite;
      run.mmioData.set(data);
    });

  it('reaches a device, eight bytes as two accesses', async () => {
    const { loop, writes } = setUp([[mmio(0xd0000010n, 8, [1, 2, 3, 4, 5, 6, 7, 0x88], 1), leave]]);
    await loop.run();
    expect(writes).toEqual([
      [0x10, 0x04030201, 4],
      [0x14, 0x88070605, 4],
    ]);
    expect(loop.exits.mmio).toBe(1);
  });

  it.each([
    ['a device answers', 0xd0000000n, [0xef, 0xcd, 0xab, 0x89]],
    ['unassigned memory reads zeros', 0xe0000000n, [0, 0, 0, 0]],
  ])('%s', async (_, address, expected) => {
    const { loop, vcpus } = setUp([[mmio(address, 4, [9, 9, 9, 9], 0), hlt]]);
    await loop.run();
    expect([...vcpus[0]!.kvmRun.mmioData.subarray(0, 4)]).toEqual(expected);
  });
});

describe('MAP_GPA_RANGE', () => {
  it.each([
    ['bit 4 set: private', 16n, [0x200000, 0x3000, 'private']],
    ['bit 4 clear, a page size given: shared', 1n, [0x200000, 0x3000, 'shared']],
    ['high bits do not hide bit 4', 0xffffffff00000010n, [0x200000, 0x3000, 'private']],
  ])('%s', async (_, attributes, request) => {
    const convert = vi.fn(() => DONE);
    const { loop, vcpus } = setUp([[hypercall(0x200000n, 3n, attributes), hlt]], convert);
    await loop.run();
    expect(convert.mock.calls).toEqual([request]);
    expect(vcpus[0]!.kvmRun.hypercallRet).toBe(0n);
    expect(loop.exits.hypercall).toBe(1);
  });

  it('that is refused gives the guest the error, and it goes on', async () => {
    const { loop, vcpus } = setUp([[hypercall(0n, 1n, 0n), hlt]], () => ({
      result: -22,
      outcome: 'refused',
    }));
    expect(await loop.run()).toEqual({ reason: 'hlt', code: 0 });
    expect(vcpus[0]!.kvmRun.hypercallRet).toBe(0xffff_ffff_ffff_ffean);
  });

  it('that fails half-way ends the run with the reason', async () => {
    const { loop, vcpus } = setUp([[hypercall(0n, 1n, 0n), hlt]], () => ({ result: -12, outcome: 'failed' }));
    expect(await loop.run()).toEqual({ reason: 'error', code: 125, message: 'vCPU 0: what went wrong' });
    expect(vcpus[0]!.runs).toBe(1);
  });

  describe('to private', () => {
    const done = () => DONE;
    const toPrivate = [hypercall(0x200000n, 3n, 16n), hlt];

    it('maps the pages in advance, as far as they can be had', async () => {
      const { loop, vcpus } = setUp([toPrivate], done);
      const answers = [{ gpa: 0x201000n, size: 0x2000n }, 'ENOENT'] as const;
      vcpus[0]!.preFaultAnswers.push(...answers);
      expect(await loop.run()).toEqual({ reason: 'hlt', code: 0 });
      expect(vcpus[0]!.preFaults).toEqual([
        { gpa: 0x200000n, size: 0x3000n, flags: 0n },
        { gpa: 0x201000n, size: 0x2000n, flags: 0n },
      ]);
    });

    it.each(['EINTR', 'EAGAIN'] as const)('tries again after %s, but not for ever', async (errno) => {
      const { loop, vcpus } = setUp([toPrivate], done);
      vcpus[0]!.preFaultAnswers.push(errno, { gpa: 0x203000n, size: 0n });
      await loop.run();
      expect(vcpus[0]!.preFaults).toHaveLength(2);
      const again = setUp([toPrivate], done);
      again.vcpus[0]!.preFaultAnswers.push(...Array.from({ length: 100 }, () => errno));
      expect(await again.loop.run()).toEqual({ reason: 'hlt', code: 0 });
      expect(again.vcpus[0]!.preFaults.length).toBeLessThan(20);
    });

    it('maps nothing in advance where the kernel cannot', async () => {
      const { loop, vcpus } = setUp([toPrivate], done, { preFaultSupported: false });
      await loop.run();
      expect(vcpus[0]!.preFaults).toEqual([]);
    });
  });

  it('to shared maps nothing in advance, nor does one that was refused', async () => {
    const shared = setUp([[hypercall(0x200000n, 3n, 0n), hlt]], () => DONE);
    await shared.loop.run();
    const refused = setUp([[hypercall(0x200000n, 3n, 16n), hlt]], () => ({
      result: -22,
      outcome: 'refused',
    }));
    await refused.loop.run();
    expect([shared.vcpus[0]!.preFaults, refused.vcpus[0]!.preFaults]).toEqual([[], []]);
  });
});

describe('a memory fault', () => {
  it.each([
    [8, 'private'],
    [0, 'shared'],
  ])('with flags %i converts the page to %s, and the guest goes on', async (flags, to) => {
    const convert = vi.fn(() => DONE);
    const { loop } = setUp([[fault(0x7000, flags), hlt]], convert);
    expect(await loop.run()).toEqual({ reason: 'hlt', code: 0 });
    expect(convert.mock.calls).toEqual([[0x7000, 0x1000, to]]);
    expect(loop.exits.memory_fault).toBe(1);
  });

  it.each([[1], [9], [2 ** 40]])('with unknown flags %i ends the run', async (flags) => {
    const { loop } = setUp([[fault(0x7000, flags), hlt]]);
    expect(await loop.run()).toEqual({
      reason: 'error',
      code: 125,
      message: `vCPU 0: memory fault at gpa 0x7000: unknown flags 0x${flags.toString(16)}, want 0 or 0x8`,
    });
  });

  it('whose conversion is refused or fails ends the run with the reason', async () => {
    const refused = setUp([[fault(0x7000, 8)]], () => ({ result: -22, outcome: 'refused' }));
    expect(await refused.loop.run()).toMatchObject({
      reason: 'error',
      message: 'vCPU 0: memory fault at gpa 0x7000: what went wrong',
    });
    const failed = setUp([[fault(0x7000, 8)]], () => ({ result: -12, outcome: 'failed' }));
    expect(await failed.loop.run()).toMatchObject({ reason: 'error', message: 'vCPU 0: what went wrong' });
  });

  it('that a conversion did not cure ends the run instead of looping', async () => {
    const { loop, vcpus } = setUp([[fault(0x7000, 8, { instructions: 0 })]]);
    expect(await loop.run()).toEqual({
      reason: 'error',
      code: 125,
      message:
        'vCPU 0: memory fault at gpa 0x7000 repeats: it was converted to private and the guest made no progress',
    });
    expect(vcpus[0]!.runs).toBe(2);
  });

  it('likewise where the kernel cannot count instructions', async () => {
    const { loop, vcpus } = setUp([[fault(0x7000, 8, { instructions: Number.NaN })]]);
    expect(await loop.run()).toMatchObject({ reason: 'error' });
    expect(vcpus[0]!.runs).toBe(2);
  });

  it('is not seen again in an EFAULT that fills nothing', async () => {
    const { loop } = setUp([[fault(0x7000, 8), { returns: -14 }]]);
    expect(await loop.run()).toMatchObject({ reason: 'error', message: 'vCPU 0: KVM_RUN failed: EFAULT' });
    expect(loop.exits.memory_fault).toBe(1);
  });

  it('that repeats after progress, at another page or to the other side is served', async () => {
    const { loop } = setUp([
      [
        fault(0x7000, 8, { instructions: 0 }),
        fault(0x8000, 8, { instructions: 0 }),
        fault(0x8000, 0, { instructions: 0 }),
        fault(0x8000, 0, { instructions: 5 }),
        hlt,
      ],
    ]);
    expect(await loop.run()).toEqual({ reason: 'hlt', code: 0 });
    expect(loop.exits.memory_fault).toBe(4);
  });

  it('that two vCPUs undo for each other for ever ends the run too', async () => {
    const still = { instructions: 0 };
    const scripts = [8, 0].map((flags) =>
      Array.from({ length: 9000 }, (_, index) =>
        index % 2 === 0 ? fault(0x7000, flags, still) : { ...interrupted, ...still },
      ),
    );
    const { loop } = setUp(scripts);
    expect(await loop.run()).toMatchObject({ reason: 'error', message: expect.stringContaining('repeats') });
  });
});

describe('several vCPUs', () => {
  it('take turns when they are interrupted, in the same order every time', async () => {
    const scripts = [
      [out(0x100, 1), interrupted, leave],
      [interrupted, interrupted],
      [out(0x100, 1), interrupted],
    ];
    const first = setUp(scripts);
    await first.loop.run();
    expect(first.order).toEqual([0, 0, 1, 2, 2, 0]);
    const second = setUp(scripts);
    await second.loop.run();
    expect(second.order).toEqual(first.order);
    expect(first.loop.exits.intr).toBe(3);
  });

  it('do not starve beside one that leaves the guest all the time', async () => {
    const { loop } = setUp([[out(0x100, 1)], [leave]]);
    expect(await loop.run()).toEqual({ reason: 'debug-exit', code: 0 });
  });

  it('end when the last one halts', async () => {
    const { loop, order } = setUp([[hlt], [interrupted, interrupted, hlt]]);
    expect(await loop.run()).toEqual({ reason: 'hlt', code: 0 });
    expect(order).toEqual([0, 1, 1, 1]);
    expect(loop.exits.hlt).toBe(2);
  });

  it('what the kernel says to be ready runs at its turn, whatever its promise', async () => {
    const { loop, vcpus, order } = setUp([
      [{ returns: 1, pending: new Promise<void>(() => {}) }, leave],
      [
        { returns: -4 },
        {
          returns: -4,
          fill: () => {
            vcpus[0]!.ready = true;
          },
        },
        { returns: -4 },
      ],
    ]);
    await loop.run();
    expect(order).toEqual([0, 1, 1, 0]);
  });

  it('IOAPIC_EOI goes to the machine’s IOAPIC, and the vCPU goes on', async () => {
    const eoi = exit(26, (run) => {
      run.bytes[0x20] = 0x61;
    });
    const { loop, ends } = setUp([[eoi, leave]]);
    await loop.run();
    expect(ends).toEqual([0x61]);
    expect(loop.exits.ioapic_eoi).toBe(1);
  });

  it('run on while one waits for a page', async () => {
    let deliver = (): void => {};
    const pending = new Promise<void>((resolve) => {
      deliver = resolve;
    });
    const { loop, order } = setUp([
      [{ returns: 1, pending }, leave],
      [interrupted, interrupted, { returns: -4, fill: () => deliver() }, hlt],
    ]);
    expect(await loop.run()).toEqual({ reason: 'debug-exit', code: 0 });
    expect(order).toEqual([0, 1, 1, 1, 1, 0]);
    expect(loop.exits.pending).toBe(1);
  });

  it('all waiting: the loop sleeps until a page comes', async () => {
    const pending = new Promise<void>((resolve) => setTimeout(resolve, 5));
    const { loop, vcpus } = setUp([[{ returns: 1, pending }, leave]]);
    expect(await loop.run()).toEqual({ reason: 'debug-exit', code: 0 });
    expect(vcpus[0]!.runs).toBe(2);
  });
});

describe('time', () => {
  it('is up: the run ends, and may go on later', async () => {
    const clock = new ManualClock();
    let slow = true;
    const { loop } = setUp([
      Array.from({ length: 20 }, () => ({
        returns: -4,
        fill: () => {
          if (slow) clock.advance(1e6);
        },
      })).concat([leave as never]),
    ]);
    expect(await loop.run({ timeoutMs: 5, clock })).toEqual({
      reason: 'timeout',
      code: 124,
      message: 'the guest did not end within 5 ms',
    });
    slow = false;
    expect(await loop.run({ timeoutMs: 5, clock })).toEqual({ reason: 'debug-exit', code: 0 });
  });

  it('is up for a guest that waits for ever', async () => {
    const { loop } = setUp([[{ returns: 1, pending: new Promise<void>(() => {}) }]]);
    expect(await loop.run({ timeoutMs: 10 })).toMatchObject({ reason: 'timeout', code: 124 });
  });

  it('belongs to others as well: a timer fires while a guest spins, and can abort it', async () => {
    const { loop, vcpus } = setUp([[interrupted]]);
    const run = vcpus[0]!.run.bind(vcpus[0]);
    vcpus[0]!.run = () => {
      vcpus[0]!.runs = 0;
      return run();
    };
    const abort = new AbortController();
    setTimeout(() => abort.abort('enough'), 20);
    expect(await loop.run({ signal: abort.signal })).toEqual({
      reason: 'error',
      code: 125,
      message: 'aborted: enough',
    });
  });

  it('an abort wakes a guest that waits for ever', async () => {
    const { loop } = setUp([[{ returns: 1, pending: new Promise<void>(() => {}) }]]);
    const abort = new AbortController();
    setTimeout(() => abort.abort('enough'), 5);
    expect(await loop.run({ signal: abort.signal })).toMatchObject({ message: 'aborted: enough' });
  });
});

it('each exit and conversion stands in the trace', async () => {
  const { loop, trace } = setUp([[out(0x100, 1), hypercall(0x2000n, 2n, 16n), fault(0x7000, 0), leave]]);
  const events: TraceEvent[] = [];
  trace.listen((event) => events.push(event));
  await loop.run();
  expect(events).toMatchObject([
    { kind: 'exit', who: 'vmm', what: 'io out', vcpu: 0, port: 0x100 },
    { kind: 'page', who: 'vmm', what: 'convert to private', why: 'KVM_HC_MAP_GPA_RANGE', gfn: 2, pages: 2 },
    { kind: 'page', who: 'vmm', what: 'convert to shared', why: 'KVM_EXIT_MEMORY_FAULT', gfn: 7, pages: 1 },
    { kind: 'exit', port: 0xf4 },
  ]);
});

describe('the lock on the certificates’ file, held from the exit that asks for them until KVM_RUN says that the report is made,', () => {
  const PATH = '/certificates';
  let kernel: Kernel;
  let process: Process;
  beforeEach(() => {
    kernel = createKernel({ memory: 4 << 20 });
    process = kernel.newProcess();
    expect(update()).toBe(true);
  });
  afterEach(() => kernel.close());

  /** Whether an updater gets at the file. */
  const update = (): boolean => updateCertificates(process, PATH, () => new Uint8Array(24));

  /** A vCPU whose guest asks for certificates. */
  const runOf = (script: ScriptedRun[]) =>
    setUp([script], () => DONE, {
      certificates: new CertificateSource(process, { path: PATH }, () => {}),
    }).loop.run();

  const view = ({ bytes }: KvmRun): DataView => new DataView(bytes.buffer, bytes.byteOffset);
  /** KVM_EXIT_SNP_REQ_CERTS (43): gpa at 0x20, npages at 0x28. */
  const request: ScriptedRun = {
    fill: (run) => {
      run.exitReason = 43;
      view(run).setBigUint64(0x20, 0x1000n, true);
      view(run).setBigUint64(0x28, 1n, true);
    },
  };
  /** KVM_EXIT_VMGEXIT (40) of the early form: type 1 at 0x20, npages at 0x30, status (1: done) at 0x3d. */
  const early = (status: 0 | 1): ScriptedRun => ({
    fill: (run) => {
      run.exitReason = 40;
      view(run).setUint32(0x20, 1, true);
      view(run).setBigUint64(0x30, 1n, true);
      view(run).setUint8(0x3d, status);
    },
  });
  it.each<[string, ScriptedRun, ScriptedRun, number]>([
    ['EINTR, which immediate_exit makes', request, { returns: -4 }, 1],
    ['another exit', request, { fill: (run) => void (run.exitReason = 10) }, 1],
    ['the early form’s notice', early(0), early(1), 0],
  ])('ends with %s', async (_, ask, done, immediateExit) => {
    const free: boolean[] = [];
    const immediate: number[] = [];
    const look = (run: KvmRun): void => {
      free.push(update());
      immediate.push(run.immediateExit);
    };
    const watched = ({ fill, ...step }: ScriptedRun): ScriptedRun => ({
      ...step,
      fill: (run) => {
        look(run);
        fill?.(run);
      },
    });
    const end = await runOf([ask, watched(done), watched(leave)]);
    expect(end).toMatchObject({ code: 0 });
    expect(free).toEqual([false, true]);
    expect(immediate).toEqual([immediateExit, 0]);
  });

  it('ends where KVM_RUN fails', async () => {
    const end = await runOf([request, { returns: -19 }]);
    expect(end).toMatchObject({ reason: 'error', code: 125 });
    expect(update()).toBe(true);
  });
});
