/** What SNP does to pages of a guest_memfd (reference facts 2.6): the first fault gives them to the guest, freeing takes them back, 4 KiB and 2 MiB. */
import { describe, expect, it } from 'vitest';
import type { Gfn, Pfn } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import type { GuestMemfd } from '../../../src/kernel/kvm/guest-memfd.ts';
import { preparePage } from '../../../src/kernel/kvm/svm/sev/gmem-hooks.ts';
import type { SevVm } from '../../../src/kernel/kvm/svm/sev/sev-vm.ts';
import { FRESH, SnpVm } from './snp-bench.ts';
import { errnoOf, pageStates } from './snp-rules.ts';
import { exit, HLT, ScriptedCore, type Step } from './vcpu-bench.ts';

const PUNCH = 3;
const MiB2 = 0x20_0000;

/** A guest, and how to run exits of it. `launched`: where its only page is; 0: it has none. */
function guest(options: { gmemHuge?: boolean; kernel?: '6.12' | '7.2' } = {}, launched = 0) {
  const snp = new SnpVm({ memory: 16 << 20, ...options });
  const core = new ScriptedCore(snp.kernel.memory);
  Object.assign(snp.vm, { createCore: () => core });
  snp.init().start();
  if (launched > 0) snp.update(1, launched, 0x1000);
  snp.finish();
  const run = (...steps: Step[]): number => {
    core.script.push(...steps);
    return snp.vcpu.run();
  };
  return { snp, run };
}

/** A nested fault of a guest that means private memory: ENC (34), and bits of the error's low word. */
const privateFault = (gpa: number, error = 4, high = 4): Step =>
  exit(0x400, BigInt(error >>> 0) | (BigInt(high) << 32n), BigInt(gpa));

/** Frames of the guest: RMP entries that have its ASID, by gpa. VMSAs have a gpa that is none. */
function guestPages(snp: SnpVm): Map<number, { frame: number; large: boolean; state: string }> {
  const { memory } = snp.kernel;
  const rmp = memory.rmp!;
  const pages = new Map<number, { frame: number; large: boolean; state: string }>();
  for (let frame = 0; frame < memory.frameCount; frame++) {
    const { asid, gpa, large } = rmp.entry(frame as Pfn);
    if (asid === 0 || gpa === 0xffff_ffff_f000 || (large && frame % 512 !== 0)) continue;
    pages.set(gpa, { frame, large, state: rmp.state(frame as Pfn) });
  }
  return pages;
}

describe('a private page of an SNP guest', () => {
  // The order of what the file has there; how much of the RMP becomes the guest's.
  it.each([
    [0, 1, false],
    [8, 1, false],
    [9, 512, true],
  ])('is as large in the RMP as its folio, of order %d', (order, pages, large) => {
    const memory = HostMemory.create({ bytes: 8 << 20, trace: new Trace(), rmp: true });
    const rmp = memory.rmp!;
    rmp.initialise();
    const region = memory.allocate(9, memory.owner('file')) as Pfn;
    const sev = { vm: { memory }, active: true, asid: 3 } as unknown as SevVm;
    expect(preparePage(sev, 0x405 as Gfn, (region + 5) as Pfn, order)).toBe(0);
    const owned = Array.from({ length: 512 }, (_, i) => rmp.assigned((region + i) as Pfn));
    expect([owned.filter(Boolean).length, rmp.isLarge((region + 5) as Pfn)]).toEqual([pages, large]);
    memory.close();
  });

  it('becomes the guest’s at the first fault, to be validated', () => {
    const { snp, run } = guest();
    snp.attributes(FRESH, 4096, 8n);
    expect(run(privateFault(FRESH), HLT)).toBe(0);
    const page = guestPages(snp).get(FRESH)!;
    expect(page).toMatchObject({ large: false, state: 'guest-invalid' });
    expect(guestPages(snp).size).toBe(1);
  });

  it('is not asked for where the attribute says shared: exit 39 with PRIVATE', () => {
    const { snp, run } = guest();
    expect(run(privateFault(FRESH))).toBe(-14);
    expect(snp.vcpu.kvmRun.exitReason).toBe(39);
    expect(guestPages(snp).size).toBe(0);
  });

  it('comes by KVM_PRE_FAULT_MEMORY as well', () => {
    const { snp } = guest();
    snp.attributes(FRESH, 0x2000, 8n);
    snp.vcpu.preFaultMemory({ gpa: BigInt(FRESH), size: 0x2000n, flags: 0n });
    expect([...guestPages(snp).keys()]).toEqual([FRESH, FRESH + 0x1000]);
  });

  it('stays the guest’s when its attribute changes, and is the host’s again when it is punched out', () => {
    const { snp, run } = guest();
    snp.attributes(FRESH, 4096, 8n);
    run(privateFault(FRESH), HLT);
    const { frame } = guestPages(snp).get(FRESH)!;
    snp.attributes(FRESH, 4096, 0n);
    expect(guestPages(snp).has(FRESH)).toBe(true);
    snp.process.fallocate(snp.gmem, PUNCH, BigInt(FRESH), 4096n);
    expect(snp.kernel.memory.rmp!.state(frame as Pfn)).toBe('hypervisor');
  });

  it('goes back with the file', () => {
    const { snp, run } = guest();
    snp.attributes(FRESH, 0x4000, 8n);
    run(privateFault(FRESH), privateFault(FRESH + 0x3000), HLT);
    expect(guestPages(snp).size).toBe(2);
    snp.process.close(snp.gmem);
    expect(guestPages(snp).size).toBe(0);
    expect(run(privateFault(FRESH))).toBe(-14);
  });

  it('that is poisoned is nobody’s: exit 39 with EHWPOISON', () => {
    const { snp, run } = guest();
    snp.attributes(FRESH, 8192, 8n);
    expect(run(privateFault(FRESH), privateFault(FRESH + 4096), HLT)).toBe(0);
    const file = snp.vm.openFile(snp.gmem).operations as GuestMemfd;
    file.failPage(FRESH / 4096 + 1);
    expect(run(privateFault(FRESH), privateFault(FRESH + 4096))).toBe(-133);
    expect(snp.vcpu.kvmRun.exitReason).toBe(39);
    expect(snp.vm.mmu.lookup((FRESH / 4096 + 1) as never)).toBeUndefined();
  });

  it('that RMPUPDATE refuses has KVM_RUN answer EINVAL', () => {
    const { snp, run } = guest();
    const rmp = snp.kernel.memory.rmp!;
    snp.attributes(FRESH, 4096, 8n);
    run(privateFault(FRESH), HLT);
    const { frame } = guestPages(snp).get(FRESH)!;
    snp.process.fallocate(snp.gmem, PUNCH, BigInt(FRESH), 4096n);
    const free = {
      assigned: false,
      large: false,
      gpa: 0,
      asid: 0,
      vmsa: false,
      validated: false,
      permissions: 0,
    };
    // Whatever frame comes next is fixed: nobody may give it away.
    for (let at = 0; at < snp.kernel.memory.frameCount; at++)
      if (rmp.state(at as Pfn) === 'hypervisor') rmp.setEntry(at as Pfn, { ...free, immutable: true });
    expect(run(privateFault(FRESH))).toBe(-22);
    for (let at = 0; at < snp.kernel.memory.frameCount; at++)
      if (rmp.state(at as Pfn) === 'hv-fixed') rmp.setEntry(at as Pfn, { ...free, immutable: false });
    expect(frame).toBeGreaterThan(0);
    expect(run(privateFault(FRESH), HLT)).toBe(0);
  });

  it('cannot be launched over: EIO', () => {
    const snp = new SnpVm().init().start();
    snp.attributes(0, 0x1000, 8n);
    snp.update(1, 0, 0x1000);
    expect(errnoOf(() => snp.update(3, 0, 0x1000))).toBe(5);
  });
});

it('before KVM_SEV_INIT2 a page of a guest_memfd stays the host’s, and the guest has it shared', () => {
  const snp = new SnpVm({ memory: 16 << 20 });
  const core = new ScriptedCore(snp.kernel.memory);
  Object.assign(snp.vm, { createCore: () => core });
  snp.vm.setUserMemoryRegion2({
    slot: 1,
    flags: 4,
    guestPhysAddr: 0x4000_0000n,
    memorySize: 0x4000n,
    userspaceAddr: BigInt(snp.hva),
    guestMemfd: snp.vm.createGuestMemfd({ size: 0x4000n, flags: 1n }),
    guestMemfdOffset: 0n,
  });
  const vcpu = snp.vm.createVcpu(0);
  core.script.push(exit(0x400, 4n, 0x4000_0000n), HLT);
  expect(vcpu.run()).toBe(0);
  const { pfn } = snp.vm.mmu.lookup(0x4_0000 as never)!;
  expect(snp.kernel.memory.rmp!.state(pfn)).toBe('hypervisor');
});

describe('2 MiB of an SNP guest', () => {
  const huge = (kernel: '6.12' | '7.2' = '7.2') => {
    const { snp, run } = guest({ gmemHuge: true, kernel });
    snp.attributes(0, MiB2, 8n);
    return { snp, run };
  };

  it('are one entry of the RMP where the file has a whole folio', () => {
    const { snp, run } = huge();
    expect(run(privateFault(0x12_3000), HLT)).toBe(0);
    expect(guestPages(snp).size).toBe(1);
    expect(guestPages(snp).get(0)).toMatchObject({ large: true, state: 'guest-invalid' });
    expect(snp.vm.mmu.lookup(0x123 as never)).toMatchObject({ level: 2 });
  });

  it('are small pages where part of them was launched', () => {
    const { snp, run } = guest({ gmemHuge: true }, 0x5000);
    snp.attributes(0, MiB2, 8n);
    expect(run(privateFault(0x6000), HLT)).toBe(0);
    expect(guestPages(snp).get(0x5000)).toMatchObject({ large: false, state: 'guest-valid' });
    expect(guestPages(snp).get(0x6000)).toMatchObject({ large: false, state: 'guest-invalid' });
    expect(guestPages(snp).size).toBe(2);
    expect(run(privateFault(0), HLT)).toBe(0);
    expect(guestPages(snp).get(0)).toMatchObject({ large: false });
    snp.process.fallocate(snp.gmem, PUNCH, 0n, BigInt(MiB2));
    expect(guestPages(snp).size).toBe(0);
    expect(snp.kernel.psp!.leakedPages).toBe(0);
  });

  it('are cut when one page is punched out: the others stay the guest’s', () => {
    const { snp, run } = huge();
    run(privateFault(0), HLT);
    snp.kernel.memory.rmp!.setValidated(guestPages(snp).get(0)!.frame, true);
    snp.process.fallocate(snp.gmem, PUNCH, 0x7000n, 4096n);
    const pages = guestPages(snp);
    expect(pages.size).toBe(511);
    expect(pages.has(0x7000)).toBe(false);
    expect(pages.get(0x8000)).toMatchObject({ large: false, state: 'guest-valid' });
    expect(pages.get(0)).toMatchObject({ large: false, state: 'guest-valid' });
  });

  it('go back at once when all of it is punched out', () => {
    const { snp, run } = huge();
    run(privateFault(0), HLT);
    const rmp = snp.kernel.memory.rmp!;
    rmp.psmash = () => {
      throw new Error('they are cut');
    };
    snp.process.fallocate(snp.gmem, PUNCH, 0n, BigInt(MiB2));
    expect(guestPages(snp).size).toBe(0);
    expect(pageStates(snp.kernel)).toEqual({ firmware: 1, context: 1, 'guest-valid': 1 });
  });

  /** What is zapped from now on. */
  const watchZaps = ({ vm }: SnpVm): [number, number][] => {
    const zaps: [number, number][] = [];
    const zapRange = vm.mmu.zapRange.bind(vm.mmu);
    vm.mmu.zapRange = (start, end) => {
      zaps.push([start, end]);
      return zapRange(start, end);
    };
    return zaps;
  };

  it('are cut for a guest that works on 4 KiB of them: the mapping goes, the next fault maps 4 KiB', () => {
    const { snp, run } = huge();
    run(privateFault(0), HLT);
    const zaps = watchZaps(snp);
    // RMP (31) with SIZEM (35): PVALIDATE of 4 KiB.
    expect(run(privateFault(0x3000, 0x8000_0004, 0xc), HLT)).toBe(0);
    expect(guestPages(snp).size).toBe(512);
    expect(zaps).toEqual([[3, 515]]);
    // Small pages need no more of it: another vCPU was faster.
    expect(run(privateFault(0x3000, 0x8000_0004, 0xc), privateFault(0x3000, 0x8000_0004), HLT)).toBe(0);
    expect(zaps).toHaveLength(1);
    expect(snp.vm.mmu.lookup(3 as never)).toMatchObject({ level: 1 });
  });

  it('are not cut for a fault of a page that is not private', () => {
    const { snp, run } = huge();
    run(privateFault(0), HLT);
    snp.attributes(0x3000, 4096, 0n);
    const zaps = watchZaps(snp);
    run(exit(0x400, 0x8000_0004n, 0x3000n), HLT);
    expect([guestPages(snp).size, zaps]).toEqual([1, []]);
    expect(snp.vm.mmu.lookup(3 as never)).toMatchObject({ level: 1 });
  });

  it('are 4 KiB pages where guest and file begin them elsewhere', () => {
    const { snp, run } = guest({ gmemHuge: true });
    const base = 0x4000_0000;
    snp.vm.setUserMemoryRegion2({
      slot: 1,
      flags: 4,
      guestPhysAddr: BigInt(base),
      memorySize: BigInt(MiB2),
      userspaceAddr: BigInt(snp.hva),
      guestMemfd: snp.vm.createGuestMemfd({ size: BigInt(2 * MiB2), flags: 0n }),
      guestMemfdOffset: 0x1000n,
    });
    snp.attributes(base, MiB2, 8n);
    expect(run(privateFault(base + 0x3000), HLT)).toBe(0);
    const pages = guestPages(snp);
    expect([...pages.keys()]).toEqual([base + 0x3000]);
    const { frame, large } = pages.get(base + 0x3000)!;
    expect([large, frame % 512]).toEqual([false, 4]);
  });

  it('are 4 KiB pages without the host’s option', () => {
    const { snp, run } = guest();
    snp.attributes(0, MiB2, 8n);
    run(privateFault(0x12_3000), HLT);
    expect(guestPages(snp).get(0x12_3000)).toMatchObject({ large: false });
  });
});

describe('what KVM knows of a guest whose registers it cannot see', () => {
  it.each([
    ['on', 2n, 1],
    ['off', 0n, 0],
  ])('is whether interrupts are %s', (_, interruptState, want) => {
    const { snp, run } = guest();
    const step: Step = (core) => {
      core.set(0x68, interruptState);
      return privateFault(FRESH)(core);
    };
    expect(run(step)).toBe(-14);
    expect(snp.vcpu.kvmRun.ifFlag).toBe(want);
  });

  it('is nothing of a VMGEXIT without a GHCB: the guest goes on', () => {
    const { run } = guest({ kernel: '6.12' });
    const step: Step = (core) => {
      core.set(0xa0, 0n);
      return exit(0x403)(core);
    };
    expect(run(step, HLT)).toBe(0);
  });
});
