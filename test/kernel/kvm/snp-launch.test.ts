/** KVM_MEMORY_ENCRYPT_OP for SNP as tables of rules (reference facts 2.1 to 2.6): each row an input and its errno, on both kernels. */
import { describe, expect, it } from 'vitest';
import type { Hva, Spa } from '../../../src/base/address.ts';
import type { SevCommand } from '../../../src/kernel/interface.ts';
import type { Personality } from '../../../src/kernel/kvm/index.ts';
import { hlt } from '../../hardware/cpu/assembler.ts';
import { DATA, FRESH, POLICY, SHARED, SnpVm } from './snp-bench.ts';
import { errnoOf, expectAllBack, pageStates } from './snp-rules.ts';
import { startVm } from './vm-fixture.ts';

const KERNELS: readonly Personality[] = ['6.12', '7.2'];
const EIO = 5;
const EPERM = 1;
const EBADF = 9;
const ENXIO = 6;
const EBUSY = 16;
const EINVAL = 22;
const ENOTTY = 25;

/** A command by its number alone: `data` is right for those that look at it. */
const command = (id: number, sevFd: number, error?: number): SevCommand => {
  const data = {
    vmsaFeatures: 0n,
    flags: 0,
    ghcbVersion: 0,
    policy: POLICY,
    gosvw: new Uint8Array(16),
    gfnStart: 0n,
    uaddr: 0n,
    len: 4096n,
    type: 3,
    vcekDisabled: false,
    hostData: new Uint8Array(32),
  };
  return { id, sevFd, data, ...(error !== undefined && { error }) } as unknown as SevCommand;
};

describe('KVM_MEMORY_ENCRYPT_OP', () => {
  // Of a VM: a plain one (type 0), one for SNP before INIT2, after it.
  const ROWS: readonly (readonly [string, readonly number[], number, number, number])[] = [
    ['KVM_SEV_INIT, ES_INIT', [0, 1], ENOTTY, EINVAL, EPERM],
    ['commands of SEV', [2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 20, 21], ENOTTY, ENOTTY, EPERM],
    ['commands that the switch lacks', [10, 14, 19], EINVAL, EINVAL, EPERM],
    ['KVM_SEV_INIT2', [22], EINVAL, 0, EPERM],
    ['numbers below 100 that nobody has', [23, 99], EINVAL, EINVAL, EPERM],
    ['SNP_LAUNCH_START', [100], ENOTTY, ENOTTY, 0],
    ['SNP_LAUNCH_UPDATE', [101], EINVAL, EINVAL, EINVAL],
    ['SNP_LAUNCH_FINISH', [102], ENOTTY, ENOTTY, EINVAL],
    ['numbers above', [104, 0x7fff_ffff], EINVAL, EINVAL, EINVAL],
  ];
  for (const kernel of KERNELS) {
    for (const [name, ids, plain, before, after] of ROWS) {
      it(`${kernel}: ${name}`, () => {
        for (const id of ids) {
          const snp = new SnpVm({ kernel, memory: 8 << 20 });
          const other = snp.process.openKvm().createVm(0);
          expect(errnoOf(() => other.memoryEncryptOp(command(id, snp.sevFd)))).toBe(plain);
          expect(errnoOf(() => snp.vm.memoryEncryptOp(command(id, snp.sevFd)))).toBe(before);
          if (id !== 22) snp.vm.memoryEncryptOp(command(22, snp.sevFd));
          expect(errnoOf(() => snp.vm.memoryEncryptOp(command(id, snp.sevFd)))).toBe(after);
          snp.close();
        }
      });
    }
    const enable = kernel === '7.2' ? 0 : EINVAL;
    it(`${kernel}: SNP_ENABLE_REQ_CERTS is for an SNP guest without vCPUs: ${enable}`, () => {
      const snp = new SnpVm({ kernel });
      expect(errnoOf(() => snp.vm.memoryEncryptOp(command(103, snp.sevFd)))).toBe(EINVAL);
      snp.vm.memoryEncryptOp(command(22, snp.sevFd));
      expect(errnoOf(() => snp.vm.memoryEncryptOp(command(103, snp.sevFd)))).toBe(enable);
      snp.vm.createVcpu(0);
      expect(errnoOf(() => snp.vm.memoryEncryptOp(command(103, snp.sevFd)))).toBe(EINVAL);
    });
  }

  it('is ENOTTY where KVM has no SEV, with a command or without', () => {
    const { vm } = startVm({ type: 0 });
    for (const asked of [undefined, command(22, -1), command(100, -1)])
      expect(errnoOf(() => vm.memoryEncryptOp(asked))).toBe(ENOTTY);
  });

  it('answers 0 to no command at all: a probe', () => {
    const snp = new SnpVm();
    expect(errnoOf(() => snp.vm.memoryEncryptOp(undefined))).toBe(0);
  });

  it('leaves `error` as it was where firmware was not asked', () => {
    const snp = new SnpVm();
    const failing = command(2, snp.sevFd, 77) as { error?: number };
    expect(errnoOf(() => snp.vm.memoryEncryptOp(failing as SevCommand))).toBe(ENOTTY);
    expect(failing.error).toBe(77);
    snp.init();
    const starting = command(100, snp.sevFd, 77) as { error?: number };
    snp.vm.memoryEncryptOp(starting as SevCommand);
    expect(starting.error).toBe(0);
  });
});

describe('KVM_SEV_INIT2', () => {
  // vmsa_features, flags, ghcb_version; errno on 6.12 and on 7.2.
  const ROWS: readonly (readonly [bigint, number, number, number, number])[] = [
    [0n, 0, 0, 0, 0],
    [0n, 0, 1, 0, EINVAL],
    [0n, 0, 2, 0, 0],
    [0n, 0, 3, EINVAL, EINVAL],
    [0n, 0, 0xffff, EINVAL, EINVAL],
    [0n, 1, 0, EINVAL, EINVAL],
    [0n, 0x8000_0000, 0, EINVAL, EINVAL],
    ...Array.from({ length: 64 }, (_, bit) => [1n << BigInt(bit), 0, 0, EINVAL, EINVAL] as const),
  ];
  for (const kernel of KERNELS) {
    it(`${kernel}: takes version 0 to 2 and no features; SNP's own (bit 0) is KVM's`, () => {
      for (const [vmsaFeatures, flags, ghcbVersion, old, late] of ROWS) {
        const snp = new SnpVm({ kernel, memory: 8 << 20 });
        const data = { vmsaFeatures, flags, ghcbVersion };
        const errno = errnoOf(() => snp.vm.memoryEncryptOp({ id: 22, sevFd: snp.sevFd, data }));
        expect([vmsaFeatures, flags, ghcbVersion, errno]).toEqual([
          vmsaFeatures,
          flags,
          ghcbVersion,
          kernel === '6.12' ? old : late,
        ]);
        snp.close();
      }
    });
  }

  it('comes before the first vCPU', () => {
    const snp = new SnpVm();
    snp.vm.createVcpu(0);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(EINVAL);
  });

  it('answers EBUSY when all 99 ASIDs for SNP are in use, and works again when a guest is gone', () => {
    const snp = new SnpVm({ memory: 16 << 20 });
    const kvm = snp.process.openKvm();
    const vms = Array.from({ length: 99 }, () => kvm.createVm(4));
    for (const vm of vms) vm.memoryEncryptOp(command(22, snp.sevFd));
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(EBUSY);
    vms[7]!.close();
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(0);
  });

  it('fails without a trace when memory is short: the ASID is free again', () => {
    const snp = new SnpVm({ memory: 8 << 20 });
    const release = exhaust(snp);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(12);
    release();
    const releaseMost = exhaust(snp, 1);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(EIO);
    releaseMost();
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(0);
  });
});

/** All frames but `left` are somebody else's, until what it returns is called. */
function exhaust({ kernel: { memory } }: SnpVm, left = 0): () => void {
  const owner = memory.owner('hog');
  const frames: number[] = [];
  for (let frame = memory.allocate(0, owner); frame >= 0; frame = memory.allocate(0, owner))
    frames.push(frame);
  const free = (count: number): void => {
    for (const frame of frames.splice(-count)) memory.free(frame as Parameters<typeof memory.free>[0], 0);
  };
  if (left > 0) free(left);
  return () => free(frames.length);
}

describe('a launch without memory', () => {
  it('has no context: ENOTTY', () => {
    const snp = new SnpVm({ memory: 8 << 20 }).init();
    const release = exhaust(snp);
    expect(errnoOf(() => snp.start())).toBe(25);
    release();
    snp.start();
  });

  it('adds no page, and says so', () => {
    const snp = new SnpVm({ memory: 8 << 20 }).init().start();
    snp.process.memory.write(snp.hva, new Uint8Array(4096));
    const release = exhaust(snp);
    expect(() => snp.update(3, 0, 0x1000)).toThrow('gfn 0x0: no page, errno 12');
    release();
    expect(snp.update(3, 0, 0x1000)).toBe(0n);
  });

  for (const left of [0, 1])
    it(`is not finished with an ID block where ${left} frames are left: ENOMEM, and none is kept`, () => {
      const snp = new SnpVm({ memory: 8 << 20 });
      snp.vm.memoryEncryptOp(command(22, snp.sevFd));
      snp.start();
      const release = exhaust(snp, left);
      const before = snp.kernel.memory.usage().get('psp');
      const id = { block: new Uint8Array(96), auth: new Uint8Array(4096), authorKeyEnabled: false };
      const data = { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0, id };
      expect(errnoOf(() => snp.vm.memoryEncryptOp({ id: 102, sevFd: snp.sevFd, data }))).toBe(12);
      expect(snp.kernel.memory.usage().get('psp')).toBe(before);
      release();
    });
});

it('a VMSA that KVM makes never begins 2 MiB: an erratum of real parts', () => {
  const snp = new SnpVm();
  snp.vm.memoryEncryptOp(command(22, snp.sevFd));
  const { memory } = snp.kernel;
  const owner = memory.owner('hog');
  // Frames that begin 2 MiB are free, and some others.
  const frames: number[] = [];
  for (let frame = memory.allocate(0, owner); frame >= 0; frame = memory.allocate(0, owner))
    frames.push(frame);
  const free = (frame: number) => memory.free(frame as Parameters<typeof memory.free>[0], 0);
  const first = frames.filter((frame) => frame % 512 === 0);
  const others = frames.filter((frame) => frame % 512 !== 0);
  expect(first.length).toBeGreaterThan(4);
  for (const frame of first) free(frame);
  for (const frame of others.splice(0, 64)) free(frame);
  for (const id of [0, 1, 2, 3]) {
    const vcpu = snp.vm.createVcpu(id) as SnpVm['vcpu'];
    expect(vcpu.vmcb.long(0x108) % 0x20_0000n).not.toBe(0n);
  }
  for (const frame of others) free(frame);
});

describe('device attributes of /dev/kvm', () => {
  // group, attribute: value or errno on 6.12, on 7.2 (a Milan and its firmware's policy bits).
  const ROWS: readonly (readonly [number, bigint, bigint | 'ENXIO', bigint | 'ENXIO'])[] = [
    [1, 0n, 0n, 0n],
    [1, 1n, 'ENXIO', 0x1b_ffffn],
    [1, 2n, 'ENXIO', 1n],
    [1, 3n, 'ENXIO', 'ENXIO'],
    [2, 0n, 'ENXIO', 'ENXIO'],
    [0, 0n, 'ENXIO', 'ENXIO'],
  ];
  for (const kernel of KERNELS)
    it(`${kernel}: SEV_VMSA_FEATURES, SNP_POLICY_BITS, SNP_REQ_CERTS; ENXIO for others`, () => {
      const kvm = new SnpVm({ kernel }).process.openKvm();
      for (const [group, attr, old, late] of ROWS) {
        const expected = kernel === '6.12' ? old : late;
        let value: bigint | string = 'ENXIO';
        const errno = errnoOf(() => {
          value = kvm.getDeviceAttr({ group, attr });
        });
        expect(errno).toBe(expected === 'ENXIO' ? ENXIO : 0);
        expect(value).toBe(expected);
      }
    });
});

it('attributes of SEV are 0 where KVM has no SEV', () => {
  const { kvm } = startVm({ type: 0 });
  expect([1n, 2n].map((attr) => kvm.getDeviceAttr({ group: 1, attr }))).toEqual([0n, 0n]);
});

it.each([
  ['with', true, 4],
  ['without', false, 0],
])('firmware is told to finish a launch %s VCEK_DIS', (_, vcekDisabled, flags) => {
  const snp = new SnpVm().init().start();
  const psp = snp.kernel.psp!;
  const command = psp.command.bind(psp);
  const told: number[] = [];
  psp.command = (number, buffer, report) => {
    if (number === 0xa2) told.push(buffer![24]!);
    return command(number, buffer, report);
  };
  const data = { vcekDisabled, hostData: new Uint8Array(32), flags: 0 };
  snp.vm.memoryEncryptOp({ id: 102, sevFd: snp.sevFd, data });
  expect(told).toEqual([flags]);
});

describe('SNP_LAUNCH_START', () => {
  // policy; errno and firmware's status on 6.12 and on 7.2, on a Milan. Bits 23 to 25 are nothing that its firmware knows.
  const ROWS: readonly (readonly [string, bigint, number, number, number, number])[] = [
    ['SMT and bit 17', 0x3_0000n, 0, 0, 0, 0],
    ['no SMT (bit 16)', 0x2_0000n, EINVAL, 0, EIO, 0x07],
    ['bit 17 is 0', 0x1_0000n, EINVAL, 0, EINVAL, 0],
    ['nothing', 0n, EINVAL, 0, EINVAL, 0],
    ['migration agent (18)', 0x7_0000n, EINVAL, 0, EINVAL, 0],
    ['debug (19)', 0xb_0000n, 0, 0, 0, 0],
    ['single socket (20)', 0x13_0000n, EINVAL, 0, 0, 0],
    ['reserved 26', 0x403_0000n, EINVAL, 0, EINVAL, 0],
    ['reserved 63', 0x8000_0000_0003_0000n, EINVAL, 0, EINVAL, 0],
    ['ABI 1.0', 0x3_0100n, 0, 0, 0, 0],
    ['ABI 255.0, above firmware’s', 0x3_ff00n, EIO, 0x07, EIO, 0x07],
    ['ABI 1.255', 0x3_01ffn, EIO, 0x07, EIO, 0x07],
  ];
  for (const kernel of KERNELS)
    for (const [name, policy, old, oldStatus, late, lateStatus] of ROWS)
      it(`${kernel}: policy with ${name}`, () => {
        const snp = new SnpVm({ kernel, memory: 8 << 20 }).init();
        const start: SevCommand = {
          id: 100,
          sevFd: snp.sevFd,
          data: { policy, gosvw: new Uint8Array(16), flags: 0 },
        };
        expect(errnoOf(() => snp.vm.memoryEncryptOp(start))).toBe(kernel === '6.12' ? old : late);
        expect(start.error ?? 0).toBe(kernel === '6.12' ? oldStatus : lateStatus);
        const { context = 0 } = pageStates(snp.kernel);
        expect(context).toBe((kernel === '6.12' ? old : late) === 0 ? 1 : 0);
      });

  it('refuses flags, and a second context', () => {
    const snp = new SnpVm().init();
    const start = (flags: number): SevCommand => ({
      id: 100,
      sevFd: snp.sevFd,
      data: { policy: POLICY, gosvw: new Uint8Array(16), flags },
    });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(start(1)))).toBe(EINVAL);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(start(0x8000)))).toBe(EINVAL);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(start(0)))).toBe(0);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(start(0)))).toBe(EINVAL);
  });

  it('has no context without /dev/sev: ENOTTY, and firmware is not asked', () => {
    const snp = new SnpVm().init();
    for (const sevFd of [-1, 99, snp.gmem]) {
      const start = command(100, sevFd, 77) as { error?: number };
      expect(errnoOf(() => snp.vm.memoryEncryptOp(start as SevCommand))).toBe(ENOTTY);
      expect(start.error).toBe(77);
    }
    expect(pageStates(snp.kernel)).toEqual({ firmware: 1 });
  });
});

describe('SNP_LAUNCH_UPDATE', () => {
  interface Row {
    readonly name: string;
    readonly gfn?: bigint;
    readonly uaddr?: (snp: SnpVm) => bigint;
    readonly len?: bigint;
    readonly type?: number;
    readonly flags?: number;
    readonly sevFd?: number;
    readonly old: number;
    readonly late: number;
  }
  const ROWS: readonly Row[] = [
    { name: 'flags', flags: 1, old: EINVAL, late: EINVAL },
    { name: 'a length of no pages', len: 0n, old: EIO, late: EINVAL },
    { name: 'part of a page', len: 0x1001n, old: EINVAL, late: EINVAL },
    { name: 'a source between pages', uaddr: ({ hva }) => BigInt(hva) + 8n, old: 0, late: EINVAL },
    { name: 'a source between pages of type ZERO', uaddr: () => 8n, type: 3, old: 0, late: 0 },
    ...[0, 2, 7, 0xff].map((type) => ({ name: `type ${type}`, type, old: EINVAL, late: EINVAL })),
    ...[1, 3, 4, 5].map((type) => ({ name: `type ${type}`, type, old: 0, late: 0 })),
    { name: 'a gfn without a slot', gfn: 0x1000n, old: EINVAL, late: EINVAL },
    { name: 'a gfn beyond all', gfn: 0xffff_ffff_ffff_ffffn, old: EINVAL, late: EINVAL },
    { name: 'a slot without guest_memfd', gfn: 0x400n, old: EINVAL, late: EINVAL },
    { name: 'a gfn whose attribute is shared', gfn: 0x41n, old: EIO, late: EIO },
    { name: 'a source that is not mapped', uaddr: () => 0x1000n, old: EIO, late: EIO },
    {
      name: 'a source that nobody has touched yet',
      uaddr: ({ process }) => {
        const fd = process.memfdCreate('source');
        process.ftruncate(fd, 0x1000n);
        return BigInt(process.memory.mmap({ length: 0x1000, protection: 3, flags: 1, fd }));
      },
      old: 0,
      late: 0,
    },
    { name: 'a source beyond user space', uaddr: () => 0xffff_ffff_ffff_f000n, old: EIO, late: EIO },
    { name: 'a descriptor that is not /dev/sev', sevFd: 99, old: EIO, late: EIO },
  ];
  for (const kernel of KERNELS)
    for (const row of ROWS)
      it(`${kernel}: ${row.name}`, () => {
        const snp = new SnpVm({ kernel, memory: 16 << 20 }).init().start();
        snp.vm.setUserMemoryRegion2({
          slot: 1,
          flags: 0,
          guestPhysAddr: 0x40_0000n,
          memorySize: 0x1000n,
          userspaceAddr: BigInt(snp.hva),
          guestMemfd: 0,
          guestMemfdOffset: 0n,
        });
        snp.attributes(0, 0x40000, 8n);
        const before = pageStates(snp.kernel);
        const data = {
          gfnStart: row.gfn ?? 0n,
          uaddr: row.uaddr?.(snp) ?? BigInt(snp.hva),
          len: row.len ?? 4096n,
          type: row.type ?? 1,
          flags: row.flags ?? 0,
        };
        const asked = { ...data };
        const update: SevCommand = { id: 101, sevFd: row.sevFd ?? snp.sevFd, data };
        const expected = kernel === '6.12' ? row.old : row.late;
        expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(expected);
        if (expected !== 0) {
          expect(data).toEqual(asked);
          expect(pageStates(snp.kernel)).toEqual(before);
        } else {
          expect(data.len).toBe(0n);
          expect(pageStates(snp.kernel)).toEqual({ ...before, 'guest-valid': 1 });
        }
      });

  it('wants a context, with or without INIT2', () => {
    const snp = new SnpVm();
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(101, snp.sevFd)))).toBe(EINVAL);
    snp.init();
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(101, snp.sevFd)))).toBe(EINVAL);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(102, snp.sevFd)))).toBe(EINVAL);
  });

  it('goes to the end of the slot and writes back what is left', () => {
    const snp = new SnpVm().init().start();
    snp.attributes(0x1fe000, 0x2000, 8n);
    const data = { gfnStart: 0x1fen, uaddr: BigInt(snp.hva), len: 0x5000n, type: 1, flags: 0 };
    snp.vm.memoryEncryptOp({ id: 101, sevFd: snp.sevFd, data });
    expect(data).toEqual({
      gfnStart: 0x200n,
      uaddr: BigInt(snp.hva) + 0x2000n,
      len: 0x3000n,
      type: 1,
      flags: 0,
    });
  });

  it('leaves the source alone for pages of zeros', () => {
    const snp = new SnpVm().init().start();
    snp.attributes(0x10000, 0x2000, 8n);
    const data = { gfnStart: 0x10n, uaddr: 0x123n, len: 0x2000n, type: 3, flags: 0 };
    snp.vm.memoryEncryptOp({ id: 101, sevFd: snp.sevFd, data });
    expect(data).toEqual({ gfnStart: 0x12n, uaddr: 0x123n, len: 0n, type: 3, flags: 0 });
  });

  it('stops at the page that fails, says nothing of it, and says it when asked again', () => {
    const snp = new SnpVm().init().start();
    snp.attributes(0, 0x3000, 8n);
    const data = { gfnStart: 0n, uaddr: BigInt(snp.hva), len: 0x5000n, type: 1, flags: 0 };
    const update: SevCommand = { id: 101, sevFd: snp.sevFd, data };
    snp.kernel.secureProcessor!.inject({ command: 0xa1, nth: 3, status: 0x17 });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(0);
    expect([data.gfnStart, data.len, update.error ?? 0]).toEqual([2n, 0x3000n, 0]);
    snp.kernel.secureProcessor!.inject({ command: 0xa1, nth: 1, status: 0x17 });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(EIO);
    expect([data.gfnStart, data.len, update.error]).toEqual([2n, 0x3000n, 0x17]);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(0);
    expect([data.gfnStart, data.len]).toEqual([3n, 0x2000n]);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(EIO);
    expect(update.error).toBe(0);
  });

  it('takes no page twice', () => {
    const snp = new SnpVm().init().start();
    expect(snp.update(1, 0, 0x1000)).toBe(0n);
    expect(errnoOf(() => snp.update(1, 0, 0x1000))).toBe(EIO);
  });

  it('gives back the CPUID page as firmware wants it, readable, and takes that one', () => {
    const snp = new SnpVm().init().start();
    const view = new DataView(snp.image.buffer);
    view.setUint32(DATA, 1, true);
    // Leaf 1, all of it: more than any Milan has.
    view.setUint32(DATA + 16, 1, true);
    view.setBigUint64(DATA + 24, 1n, true);
    for (const at of [40, 44, 48, 52]) view.setUint32(DATA + at, 0xffff_ffff, true);
    snp.process.memory.write((snp.hva + DATA) as Hva, snp.image.subarray(DATA, DATA + 4096));
    snp.attributes(DATA, 4096, 8n);
    const data = {
      gfnStart: BigInt(DATA / 4096),
      uaddr: BigInt(snp.hva + DATA),
      len: 4096n,
      type: 6,
      flags: 0,
    };
    const update: SevCommand = { id: 101, sevFd: snp.sevFd, data };
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(EIO);
    expect(update.error).toBe(0x16);
    const corrected = new DataView(snp.read(DATA, 4096).buffer);
    expect(corrected.getUint32(0, true)).toBe(1);
    expect(corrected.getUint32(48, true)).not.toBe(0xffff_ffff);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(0);
    expect(data.len).toBe(0n);
  });

  // Page type, firmware's status; whether the VMM has what firmware left in the page.
  it.each([
    ['a CPUID page with INVALID_PARAM', 6, 0x16, true],
    ['a CPUID page with INVALID_PAGE_STATE', 6, 0x1a, false],
    ['a CPUID page with RESOURCE_LIMIT', 6, 0x17, false],
    ['a normal page with INVALID_PARAM', 1, 0x16, false],
    ['a secrets page with INVALID_PARAM', 5, 0x16, false],
  ])('firmware refuses %s', (_, type, status, isCopied) => {
    const snp = new SnpVm().init().start();
    const psp = snp.kernel.psp!;
    const { command } = psp;
    Object.assign(psp, {
      command: (id: number, buffer?: Uint8Array): number => {
        if (id !== 0xa1) return command.call(psp, id, buffer);
        const address = new DataView(buffer!.buffer, buffer!.byteOffset).getBigUint64(16, true);
        snp.kernel.memory.encryption.writeUnder(0, Number(address) as Spa, Uint8Array.of(1, 2, 3, 4));
        return status;
      },
    });
    expect(errnoOf(() => snp.update(type, DATA, 4096))).toBe(EIO);
    expect([...snp.read(DATA, 4)]).toEqual(isCopied ? [1, 2, 3, 4] : [0, 0, 0, 0]);
  });

  it('after the end of the launch is firmware’s business: INVALID_GUEST_STATE', () => {
    const snp = new SnpVm().launch([hlt()]);
    snp.attributes(FRESH, 4096, 8n);
    const data = { gfnStart: BigInt(FRESH / 4096), uaddr: BigInt(snp.hva), len: 4096n, type: 1, flags: 0 };
    const update: SevCommand = { id: 101, sevFd: snp.sevFd, data };
    expect(errnoOf(() => snp.vm.memoryEncryptOp(update))).toBe(EIO);
    expect(update.error).toBe(0x02);
  });
});

describe('SNP_LAUNCH_FINISH', () => {
  const finish = (snp: SnpVm, extra: object = {}): SevCommand => ({
    id: 102,
    sevFd: snp.sevFd,
    data: { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0, ...extra },
  });

  it('refuses flags', () => {
    const snp = new SnpVm().init().start();
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp, { flags: 1 })))).toBe(EINVAL);
  });

  it('refuses a vCPU that is debugged, or has breakpoints', () => {
    const snp = new SnpVm().init().start();
    snp.vcpu.setGuestDebug({ control: 1, debugreg: new Array<bigint>(8).fill(0n) });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp)))).toBe(EINVAL);
    snp.vcpu.setGuestDebug({ control: 0, debugreg: new Array<bigint>(8).fill(0n) });
    snp.vcpu.setDebugRegs({ ...snp.vcpu.getDebugRegs(), dr7: 0x401n });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp)))).toBe(EINVAL);
    expect(pageStates(snp.kernel)).toEqual({ firmware: 1, context: 1 });
    snp.vcpu.setDebugRegs({ ...snp.vcpu.getDebugRegs(), dr7: 0x400n });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp)))).toBe(0);
  });

  it('with an ID block of another digest: EIO and BAD_MEASUREMENT', () => {
    const snp = new SnpVm().init().start();
    const id = { block: new Uint8Array(96), auth: new Uint8Array(4096), authorKeyEnabled: false };
    const request = finish(snp, { id });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(request))).toBe(EIO);
    expect(request.error).toBe(0x0b);
    expect(snp.kernel.memory.usage().get('psp')).toBe(4);
  });

  it('asks by the descriptor that LAUNCH_START had: EBADF when it is closed', () => {
    const snp = new SnpVm();
    snp.vm.memoryEncryptOp(command(22, snp.sevFd));
    snp.start();
    snp.process.close(snp.sevFd);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp)))).toBe(EBADF);
  });

  it('asks for a VMSA by the command’s own descriptor: EBADF, and the page is the host’s again', () => {
    const snp = new SnpVm().init().start();
    expect(errnoOf(() => snp.vm.memoryEncryptOp({ ...finish(snp), sevFd: 99 } as SevCommand))).toBe(EBADF);
    expect(pageStates(snp.kernel)).toEqual({ firmware: 1, context: 1 });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp)))).toBe(0);
  });

  it('makes a VMSA of each vCPU, in the order of ids', () => {
    const snp = new SnpVm().init();
    snp.vm.createVcpu(2);
    snp.vm.createVcpu(1);
    snp.start().finish();
    expect(pageStates(snp.kernel)).toEqual({ firmware: 1, context: 1, 'guest-valid': 3 });
  });

  it('of a guest that runs is EIO', () => {
    const snp = new SnpVm().launch([hlt()]);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(finish(snp)))).toBe(EIO);
  });
});

describe('protected state', () => {
  it('has its registers’ ioctls answer EINVAL once the launch is finished, and the others work', () => {
    const snp = new SnpVm().init().start();
    const { vcpu } = snp;
    const regs = vcpu.getRegs();
    const sregs = vcpu.getSregs();
    const fpu = vcpu.getFpu();
    const xsave = vcpu.getXsave();
    const xcrs = vcpu.getXcrs();
    const debug = vcpu.getDebugRegs();
    const rows: readonly (readonly [string, () => unknown, number])[] = [
      ['KVM_GET_REGS', () => vcpu.getRegs(), EINVAL],
      ['KVM_SET_REGS', () => vcpu.setRegs(regs), EINVAL],
      ['KVM_GET_SREGS', () => vcpu.getSregs(), EINVAL],
      ['KVM_SET_SREGS', () => vcpu.setSregs(sregs), EINVAL],
      ['KVM_GET_FPU', () => vcpu.getFpu(), EINVAL],
      ['KVM_SET_FPU', () => vcpu.setFpu(fpu), EINVAL],
      ['KVM_GET_XSAVE', () => vcpu.getXsave(), EINVAL],
      ['KVM_GET_XSAVE2', () => vcpu.getXsave2(), EINVAL],
      ['KVM_SET_XSAVE', () => vcpu.setXsave(xsave), EINVAL],
      ['KVM_GET_XCRS', () => vcpu.getXcrs(), EINVAL],
      ['KVM_SET_XCRS', () => vcpu.setXcrs(xcrs), EINVAL],
      ['KVM_GET_DEBUGREGS', () => vcpu.getDebugRegs(), EINVAL],
      ['KVM_SET_DEBUGREGS', () => vcpu.setDebugRegs(debug), EINVAL],
      [
        'KVM_SET_GUEST_DEBUG',
        () => vcpu.setGuestDebug({ control: 0, debugreg: new Array<bigint>(8).fill(0n) }),
        EINVAL,
      ],
      ['KVM_GET_VCPU_EVENTS', () => vcpu.getVcpuEvents(), 0],
      ['KVM_GET_MP_STATE', () => vcpu.getMpState(), 0],
      ['KVM_SET_MP_STATE', () => vcpu.setMpState(0), 0],
      ['KVM_GET_TSC_KHZ', () => vcpu.getTscKhz(), 0],
    ];
    for (const [name, call] of rows) expect([name, errnoOf(call)]).toEqual([name, 0]);
    snp.update();
    snp.finish();
    for (const [name, call, errno] of rows) expect([name, errnoOf(call)]).toEqual([name, errno]);
  });

  // Leaf 0x80000008: 48 bits; 0x8000001F: the C-bit is bit 51 (kvm_is_valid_sregs, sev_vcpu_after_set_cpuid).
  it.each([
    [48, 22],
    [50, 22],
    [51, 0],
  ])('has a CR3 with bit %i set: errno %i', (bit, want) => {
    const snp = new SnpVm();
    snp.init();
    const leaf = { index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
    snp.vcpu.setCpuid2([
      { ...leaf, function: 0x8000_0001, edx: (1 << 29) | (1 << 20) },
      { ...leaf, function: 0x8000_0008, eax: 0x3030 },
      { ...leaf, function: 0x8000_001f, ebx: 51 | (1 << 6) },
    ]);
    const sregs = snp.vcpu.getSregs();
    const long = { cr0: 0x8000_0011n, cr4: 0x20n, efer: 0x500n, cr3: 0x5000n | (1n << BigInt(bit)) };
    expect(errnoOf(() => snp.vcpu.setSregs({ ...sregs, ...long }))).toBe(want);
  });

  it('hides MSRs that the guest has without an exit', () => {
    const snp = new SnpVm().init().start();
    const hidden = [0xc0000080, 0xc0000081, 0xc0000082, 0x277, 0x174, 0xc0000100, 0xc0000102];
    for (const index of hidden) expect(snp.vcpu.getMsrs([0x10, index])).toHaveLength(2);
    snp.finish();
    for (const index of hidden) {
      expect(snp.vcpu.getMsrs([0x10, index, 0x10])).toHaveLength(1);
      expect(snp.vcpu.setMsrs([{ index, data: 0n }])).toBe(0);
    }
  });
});

describe('firmware that fails', () => {
  // A command, which of its executions, what part of the launch then answers EIO (ENOTTY for the context), and pages that cannot be had back.
  const COMMANDS: readonly (readonly [string, number, number, number, number])[] = [
    ['SNP_GCTX_CREATE', 0x93, 1, ENOTTY, 0],
    ['SNP_LAUNCH_START', 0xa0, 1, EIO, 0],
    ['SNP_ACTIVATE', 0x91, 1, EIO, 0],
    ['SNP_LAUNCH_UPDATE, the first', 0xa1, 1, EIO, 0],
    ['SNP_LAUNCH_UPDATE, the 10th', 0xa1, 10, EIO, 0],
    ['SNP_LAUNCH_UPDATE of the VMSA', 0xa1, 17, EIO, 0],
    ['SNP_LAUNCH_FINISH', 0xa2, 1, EIO, 0],
    // At the end: the response page, then the context.
    ['SNP_PAGE_RECLAIM of the response page', 0xc7, 1, 0, 1],
    ['SNP_PAGE_RECLAIM of the context', 0xc7, 2, 0, 1],
    ['SNP_DECOMMISSION', 0x90, 1, 0, 1],
  ];
  for (const [name, number, nth, errno, leaked] of COMMANDS)
    for (const status of [0x01, 0x13, 0x1a])
      it(`${name}, status ${status}: every frame is the host's again in the end, but ${leaked}`, () => {
        const snp = new SnpVm({ memory: 8 << 20, keepOpen: true }).init().load([hlt()]);
        snp.kernel.secureProcessor!.inject({ command: number, nth, status });
        const result = errnoOf(() => {
          snp.start();
          if (snp.update(1, 0, 0x10000) > 0n) snp.update(1, 0x9000, 0x1000);
          snp.finish();
        });
        // Where a later page failed the launch goes on without it, or hears of it at the next call.
        expect([errno, 0]).toContain(result);
        snp.process.exit();
        expectAllBack(snp.kernel, leaked);
        snp.kernel.close();
      });

  it('SNP_PAGE_RECLAIM after a failed LAUNCH_UPDATE: the page is lost, counted once, and nobody gets it again', () => {
    const snp = new SnpVm({ memory: 8 << 20, keepOpen: true }).init().start();
    const asp = snp.kernel.secureProcessor!;
    asp.inject({ command: 0xa1, nth: 1, status: 0x16 });
    asp.inject({ command: 0xc7, nth: 1, status: 0x1a });
    expect(errnoOf(() => snp.update(1, 0, 0x1000))).toBe(EIO);
    expect(snp.kernel.psp!.leakedPages).toBe(1);
    expect(pageStates(snp.kernel)['pre-guest']).toBe(1);
    snp.process.exit();
    expectAllBack(snp.kernel, 1);
    snp.kernel.close();
  });

  it('SNP_DF_FLUSH: ASIDs that were given back stay unusable until it works', () => {
    const snp = new SnpVm({ memory: 16 << 20 });
    const kvm = snp.process.openKvm();
    const vms = Array.from({ length: 99 }, () => kvm.createVm(4));
    for (const vm of vms) vm.memoryEncryptOp(command(22, snp.sevFd));
    for (const vm of vms) vm.close();
    snp.kernel.secureProcessor!.inject({ command: 0x84, nth: 1, status: 0x13 });
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(EBUSY);
    expect(errnoOf(() => snp.vm.memoryEncryptOp(command(22, snp.sevFd)))).toBe(0);
  });
});

describe('what a launch leaves', () => {
  it('is all the host’s again when the process ends in the middle of it', () => {
    const steps: readonly ((snp: SnpVm) => unknown)[] = [
      (snp) => snp.init(),
      (snp) => snp.start(),
      (snp) => snp.update(1, 0, 0x8000),
      (snp) => snp.finish(),
      (snp) => snp.attributes(SHARED, 4096, 8n),
    ];
    for (let count = 0; count <= steps.length; count++) {
      const snp = new SnpVm({ memory: 8 << 20, keepOpen: true });
      for (const step of steps.slice(0, count)) step(snp);
      snp.process.exit();
      expectAllBack(snp.kernel);
      snp.kernel.close();
    }
  });
});
