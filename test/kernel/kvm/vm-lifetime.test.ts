/** How long a VM lives: while its descriptor, a vCPU or a guest_memfd file of it is open. */
import { describe, expect, it } from 'vitest';
import type { TraceEvent } from '../../../src/base/trace.ts';
import { createKernel } from '../../../src/kernel/kvm/index.ts';
import { failure } from '../process-fixture.ts';
import { startVm, type TestVm } from './vm-fixture.ts';

/** Whether VMs have been destroyed, by what the trace says. */
function watch(host: TestVm): () => number {
  const events: TraceEvent[] = [];
  host.trace.listen((event) => events.push(event));
  return () => events.filter((event) => event.what === 'vm-destroy').length;
}

describe('a VM', () => {
  it('ends with its descriptor when nothing else holds it', () => {
    const host = startVm();
    const destroyed = watch(host);
    host.vm.close();
    expect(destroyed()).toBe(1);
    expect(host.memory.leaks()).toEqual([]);
  });

  it('outlives its descriptor while a vCPU is open', () => {
    const host = startVm();
    const destroyed = watch(host);
    const { vcpu } = host;
    host.vm.close();
    expect(destroyed()).toBe(0);
    expect(vcpu.getRegs().rip).toBe(0xfff0n);
    vcpu.close();
    expect(destroyed()).toBe(1);
  });

  it('outlives its descriptor while a guest_memfd is open, which still works', () => {
    const host = startVm();
    const destroyed = watch(host);
    const { fd } = host.addFileSlot();
    host.setAttributes(0x20_0000n, 0x1_0000n, 8n);
    expect(host.touch(0x20_0000)).toBe(0);
    host.vm.close();
    host.process.fallocate(fd, 1, 0n, 0x1_0000n);
    expect(host.fileFrames).toBe(16);
    host.process.fallocate(fd, 3, 0n, 0x1_0000n);
    expect(host.fileFrames).toBe(0);
    expect(host.mapped(0x20_0000)).toBeUndefined();
    host.vcpu.close();
    expect(destroyed()).toBe(0);
    host.process.close(fd);
    expect(destroyed()).toBe(1);
  });

  it('whose descriptor was closed by number leaves the file alone that has the number now', () => {
    const host = startVm();
    const { process, vm } = host;
    const other = process.dup(vm.fd);
    process.close(vm.fd);
    const file = process.memfdCreate('ram');
    expect(file).toBe(vm.fd);
    expect(failure(() => vm.createVcpu(0))).toBe('EBADF');
    vm.close();
    process.ftruncate(file, 4096n);
    expect(process.fstat(file).size).toBe(4096n);
    process.close(other);
  });

  it('keeps running its vCPUs when its descriptor is closed', () => {
    const host = startVm();
    host.addFileSlot();
    host.setAttributes(0x20_0000n, 0x1_0000n, 8n);
    expect(host.vcpu.id).toBe(0);
    host.vm.close();
    expect(host.touch(0x20_0000)).toBe(0);
    expect(host.fileFrames).toBe(1);
  });

  it('lives as long as one of two descriptors of the same file', () => {
    const host = startVm();
    const destroyed = watch(host);
    const fd = host.createFile();
    const twin = host.process.dup(fd);
    host.vm.close();
    host.process.close(fd);
    expect(destroyed()).toBe(0);
    host.process.close(twin);
    expect(destroyed()).toBe(1);
  });

  it('lives as long as a mapping of its file', () => {
    const host = startVm({ type: 0 });
    const destroyed = watch(host);
    const fd = host.createFile(0x4000n, 3n);
    const at = host.process.memory.mmap({ length: 0x4000, protection: 3, flags: 1, fd });
    host.process.memory.write(at, Uint8Array.of(1));
    host.vm.close();
    host.process.close(fd);
    expect(destroyed()).toBe(0);
    expect(host.fileFrames).toBe(1);
    host.process.memory.munmap(at, 0x4000);
    expect(destroyed()).toBe(1);
    expect(host.fileFrames).toBe(0);
  });

  it('hears no more of its process when it is gone', () => {
    const host = startVm();
    const at = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
    host.setRegion({ userspaceAddr: BigInt(at) });
    const before = host.vm.invalidation.snapshot();
    host.vm.close();
    host.process.memory.munmap(at, 0x1_0000);
    expect(host.vm.invalidation.snapshot()).toBe(before);
  });

  it('whose descriptor is closed takes no ioctl: EBADF', () => {
    const { vm, kvm } = startVm();
    vm.close();
    const ioctls = [
      () => vm.checkExtension(231),
      () => vm.enableCap({ cap: 201, args: [0n] }),
      () => vm.createVcpu(0),
      () => vm.createGuestMemfd({ size: 4096n, flags: 0n }),
      () => vm.setMemoryAttributes({ address: 0n, size: 4096n, attributes: 8n, flags: 0n }),
      () =>
        vm.setUserMemoryRegion({
          slot: 0,
          flags: 0,
          guestPhysAddr: 0n,
          memorySize: 4096n,
          userspaceAddr: 0n,
        }),
      () =>
        vm.setUserMemoryRegion2({
          slot: 0,
          flags: 0,
          guestPhysAddr: 0n,
          memorySize: 4096n,
          userspaceAddr: 0n,
          guestMemfdOffset: 0n,
          guestMemfd: 0,
        }),
    ];
    expect(ioctls.map((call) => failure(call))).toEqual(ioctls.map(() => 'EBADF'));
    kvm.close();
    expect(failure(() => kvm.createVm(0))).toBe('EBADF');
    expect(failure(() => kvm.checkExtension(231))).toBe('EBADF');
  });

  it('may be closed twice, by method and by descriptor', () => {
    const host = startVm();
    const destroyed = watch(host);
    host.process.close(host.vm.fd);
    host.vm.close();
    expect(destroyed()).toBe(1);
  });
});

describe('KVM_SET_BOOT_CPU_ID', () => {
  it.each([
    [0, 'OK'],
    [4096, 'OK'],
    [4097, 'EINVAL'],
    [-1, 'EINVAL'],
  ])('id %i: %s', (id, want) => {
    expect(failure(() => startVm().vm.setBootCpuId(id))).toBe(want);
  });
});

describe('KVM_CREATE_VCPU', () => {
  it.each([
    [0, 'OK'],
    [4095, 'OK'],
    [4096, 'EINVAL'],
    [-1, 'EINVAL'],
    [0xffff_ffff, 'EINVAL'],
  ])('id %i: %s', (id, want) => {
    const { vm } = startVm();
    expect(failure(() => vm.createVcpu(id))).toBe(want);
  });

  it('a 1025th: EINVAL, whatever its id', () => {
    const { vm } = startVm({ bytes: 64 << 20, fileLimit: 2048 });
    for (let id = 0; id < 1024; id++) vm.createVcpu(id);
    expect(failure(() => vm.createVcpu(1024))).toBe('EINVAL');
    expect(failure(() => vm.createVcpu(0))).toBe('EINVAL');
  });

  it('an id twice: EEXIST, also after the first one was closed, for a VM keeps its vCPUs', () => {
    const { vm } = startVm();
    const vcpu = vm.createVcpu(7);
    expect(failure(() => vm.createVcpu(7))).toBe('EEXIST');
    vcpu.close();
    expect(failure(() => vm.createVcpu(7))).toBe('EEXIST');
    expect(failure(() => vm.createVcpu(8))).toBe('OK');
  });

  it('without a free descriptor: EMFILE; without frames: ENOMEM; nothing is kept', () => {
    const few = startVm({ fileLimit: 5 });
    const before = few.memory.freeFrames;
    expect(failure(() => few.vm.createVcpu(0))).toBe('EMFILE');
    expect(few.memory.freeFrames).toBe(before);
    const full = startVm();
    const fd = full.createFile(1n << 40n);
    expect(failure(() => full.process.fallocate(fd, 1, 0n, 1n << 40n))).toBe('ENOMEM');
    expect(failure(() => full.vm.createVcpu(0))).toBe('ENOMEM');
    full.process.fallocate(fd, 3, 0n, 1n << 40n);
    expect(failure(() => full.vm.createVcpu(0))).toBe('OK');
  });
});

describe('a vCPU that is closed', () => {
  it('has no ioctls any more, whoever closed it', () => {
    const host = startVm();
    const { vcpu, process } = host;
    const regs = vcpu.getRegs();
    const [sregs, events, debug, fpu] = [
      vcpu.getSregs(),
      vcpu.getVcpuEvents(),
      vcpu.getDebugRegs(),
      vcpu.getFpu(),
    ];
    const xsave = vcpu.getXsave();
    process.close(process.files.open().at(-1)!);
    const calls: Record<string, () => unknown> = {
      getRegs: () => vcpu.getRegs(),
      setRegs: () => vcpu.setRegs(regs),
      getSregs: () => vcpu.getSregs(),
      setSregs: () => vcpu.setSregs(sregs),
      getCpuid2: () => vcpu.getCpuid2(),
      setCpuid2: () => vcpu.setCpuid2([]),
      getLapic: () => vcpu.getLapic(),
      setLapic: () => vcpu.setLapic(new Uint8Array(1024)),
      interrupt: () => vcpu.interrupt(32),
      nmi: () => vcpu.nmi(),
      preFaultMemory: () => vcpu.preFaultMemory({ gpa: 0n, size: 4096n, flags: 0n }),
      getMpState: () => vcpu.getMpState(),
      setMpState: () => vcpu.setMpState(0),
      getVcpuEvents: () => vcpu.getVcpuEvents(),
      setVcpuEvents: () => vcpu.setVcpuEvents(events),
      getDebugRegs: () => vcpu.getDebugRegs(),
      setDebugRegs: () => vcpu.setDebugRegs(debug),
      setGuestDebug: () => vcpu.setGuestDebug({ control: 0, debugreg: [] }),
      getFpu: () => vcpu.getFpu(),
      setFpu: () => vcpu.setFpu(fpu),
      getXsave: () => vcpu.getXsave(),
      getXsave2: () => vcpu.getXsave2(),
      setXsave: () => vcpu.setXsave(xsave),
      getXcrs: () => vcpu.getXcrs(),
      setXcrs: () => vcpu.setXcrs({ flags: 0, xcrs: [] }),
      getMsrs: () => vcpu.getMsrs([0x10]),
      setMsrs: () => vcpu.setMsrs([]),
      translate: () => vcpu.translate(0n),
      getTscKhz: () => vcpu.getTscKhz(),
      setTscKhz: () => vcpu.setTscKhz(0),
    };
    const results = Object.entries(calls).map(([name, call]) => [name, failure(call)]);
    expect(results).toEqual(Object.keys(calls).map((name) => [name, 'EBADF']));
    expect(vcpu.run()).toBe(-9);
    expect([vcpu.ready, vcpu.dirtyRing]).toEqual([false, undefined]);
  });

  it('shares no memory with its VMM any more: what is written there reaches nobody', () => {
    const host = startVm();
    const { vcpu } = host;
    const { kvmRun } = vcpu;
    vcpu.close();
    const next = host.vm.createVcpu(1);
    kvmRun.bytes.fill(0x55);
    kvmRun.exitReason = 7;
    kvmRun.setHypercallArg(0, 7n);
    kvmRun.pio.fill(0x55);
    expect(next.kvmRun.exitReason).toBe(0);
    expect(next.kvmRun.bytes.includes(0x55)).toBe(false);
    expect(next.getRegs().rip).toBe(0xfff0n);
  });
});

describe('a vCPU whose core finds no host memory', () => {
  it('says ENOMEM, runs when there is some, and then never lacks room for an instruction', () => {
    const kernel = createKernel({ memory: 1 << 20 });
    const process = kernel.newProcess();
    const vm = process.openKvm().createVm(0);
    const at = process.memory.mmap({ length: 0x10000, protection: 3, flags: 0x22 });
    vm.setUserMemoryRegion({
      slot: 0,
      flags: 0,
      guestPhysAddr: 0n,
      memorySize: 0x10000n,
      userspaceAddr: BigInt(at),
    });
    // inc ax, three times, and hlt: over the end of a page
    process.memory.write((at + 0xffe) as never, Uint8Array.of(0x40, 0x40, 0x40, 0xf4));
    const vcpu = vm.createVcpu(0);
    const sregs = vcpu.getSregs();
    vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
    vcpu.setRegs({ ...vcpu.getRegs(), rip: 0xffen });
    // The guest's pages are mapped; then everything else goes.
    vcpu.preFaultMemory({ gpa: 0n, size: 0x2000n, flags: 0n });
    const owner = kernel.memory.owner('hog');
    const hog: number[] = [];
    for (let pfn = kernel.memory.allocate(0, owner); pfn >= 0; pfn = kernel.memory.allocate(0, owner))
      hog.push(pfn);
    expect(vcpu.run()).toBe(-12);
    expect(() => vcpu.getFpu()).toThrow('ENOMEM');
    const before = kernel.memory.freeFrames;
    for (const pfn of hog) kernel.memory.free(pfn as never, 0);
    vcpu.getFpu();
    for (let pfn = kernel.memory.allocate(0, owner); pfn >= 0; pfn = kernel.memory.allocate(0, owner));
    expect(kernel.memory.freeFrames).toBe(before);
    expect([vcpu.run(), vcpu.kvmRun.exitReason, vcpu.getRegs().rax]).toEqual([0, 5, 3n]);
    kernel.close();
  });
});
