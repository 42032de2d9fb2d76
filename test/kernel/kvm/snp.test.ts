/** SNP guests on our kernel: launched by ioctls, run on cores. */
import { describe, expect, it } from 'vitest';
import { Code, hlt, load, op, set, store } from '../../hardware/cpu/assembler.ts';
import { DATA, FRESH, GHCB, SECRETS, SHARED, SnpVm } from './snp-bench.ts';

const SECRET = 0x5ec4e7_00c0ffeen;
const vmgexit = () => op(Code.Vmgexit);
/** WRMSR of the GHCB MSR, VMGEXIT, RDMSR into RDX:RAX. */
const ghcbMsr = (value: bigint) => [
  set('rcx', 0xc0010130),
  set('rax', value & 0xffffffffn),
  set('rdx', value >> 32n),
  op(Code.Wrmsr),
  vmgexit(),
  op(Code.Rdmsr),
];

describe('an SNP guest', () => {
  it('runs in private memory, and the host sees neither its memory nor its registers', () => {
    const snp = new SnpVm().launch([
      set('rbx', SECRET),
      set('rdi', DATA),
      store('rdi', 'rbx'),
      set('rdi', SHARED),
      load('rcx', 'rdi'),
      set('rax', 77),
      store('rdi', 'rax', 8),
      hlt(),
    ]);
    expect(snp.vcpu.run()).toBe(0);
    expect(snp.vcpu.kvmRun.exitReason).toBe(5);
    expect(snp.long(SHARED + 8)).toBe(77n);
    expect(snp.long(DATA)).toBe(0n);
    expect(() => snp.vcpu.getRegs()).toThrow('protected');
    expect([...snp.vcpu.gpr]).not.toContain(SECRET);
  });

  it.each([
    ['the version that the VMM wants', 2],
    ['the newest version where the VMM wants none', 0],
  ])('is told its version and features by the GHCB MSR: %s', (_, ghcbVersion) => {
    const program = [
      ...ghcbMsr(2n),
      set('rdi', SHARED),
      store('rdi', 'rax'),
      store('rdi', 'rdx', 8),
      ...ghcbMsr(0x80n),
      set('rdi', SHARED),
      store('rdi', 'rax', 16),
      hlt(),
    ];
    const snp = new SnpVm().launch(program, { ghcbVersion });
    expect(snp.vcpu.run()).toBe(0);
    expect(snp.vcpu.kvmRun.exitReason).toBe(5);
    expect(snp.long(SHARED + 8)).toBe(0x0002_0001n);
    expect(snp.long(SHARED)).toBe(0x3300_0001n);
    expect(snp.long(SHARED + 16)).toBe(0x3081n);
  });

  it('that asks for its end by the GHCB MSR ends with SYSTEM_EVENT 6 (SEV_TERM) and what it said', () => {
    const snp = new SnpVm().launch(ghcbMsr(0x4_1100n));
    expect(snp.vcpu.run()).toBe(0);
    const { kvmRun } = snp.vcpu;
    const view = new DataView(kvmRun.bytes.buffer, kvmRun.bytes.byteOffset);
    expect([kvmRun.exitReason, view.getUint32(0x20, true), view.getUint32(0x24, true)]).toEqual([24, 6, 1]);
    expect(view.getBigUint64(0x28, true)).toBe(0x4_1100n);
  });

  it('gets a fresh private page by the MSR protocol, validates and uses it', () => {
    const snp = new SnpVm().launch([
      ...ghcbMsr(BigInt(FRESH) | (1n << 52n) | 0x14n),
      set('rax', FRESH),
      set('rcx', 0),
      set('rdx', 1),
      op(Code.Pvalidateq),
      set('rbx', SECRET),
      set('rdi', FRESH),
      store('rdi', 'rbx'),
      load('rax', 'rdi'),
      set('rdi', SHARED),
      store('rdi', 'rax'),
      hlt(),
    ]);
    expect(snp.vcpu.run()).toBe(0);
    expect(snp.vcpu.kvmRun.exitReason).toBe(3);
    expect(snp.vcpu.kvmRun.hypercallNrNumber).toBe(12);
    expect(snp.vcpu.kvmRun.hypercallArg(0)).toBe(BigInt(FRESH));
    expect(snp.vcpu.kvmRun.hypercallArg(1)).toBe(1n);
    expect(snp.vcpu.kvmRun.hypercallArg(2)).toBe(0x10n);
    snp.attributes(FRESH, 4096, 8n);
    expect(snp.vcpu.run()).toBe(0);
    expect(snp.vcpu.kvmRun.exitReason).toBe(5);
    expect(snp.long(SHARED)).toBe(SECRET);
    expect(snp.long(FRESH)).toBe(0n);
  });

  it('asks by its GHCB page, once it has registered it', () => {
    const snp = new SnpVm().launch([
      ...ghcbMsr(BigInt(GHCB) | 0x12n),
      // The hypervisor's features, by the page: code 0x8000fffd, infos 0, all three valid.
      set('rdi', GHCB),
      set('rax', 0x8000fffdn),
      store('rdi', 'rax', 0x390),
      set('rax', 0x001c_0000_0000_0000n),
      store('rdi', 'rax', 0x3f8),
      set('rcx', 0xc0010130),
      set('rax', GHCB),
      set('rdx', 0),
      op(Code.Wrmsr),
      vmgexit(),
      load('rax', 'rdi', 0x3a0),
      set('rdi', SHARED),
      store('rdi', 'rax'),
      hlt(),
    ]);
    expect(snp.vcpu.run()).toBe(0);
    expect(snp.vcpu.kvmRun.exitReason).toBe(5);
    expect(snp.long(SHARED)).toBe(3n);
  });

  it('has its answers to events that no guest of ours asks for otherwise', () => {
    // Code, info1, info2, RAX, RCX, RDX; the two numbers of the answer.
    const EVENTS: readonly (readonly [string, readonly bigint[], readonly [bigint, bigint]])[] = [
      ['DR7 read', [0x27n, 0n, 0n, 0n, 0n, 0n], [0n, 0n]],
      ['DR7 write', [0x37n, 0n, 0n, 0x400n, 0n, 0n], [0n, 0n]],
      ['RDPMC', [0x6fn, 0n, 0n, 0n, 1n, 0n], [1n, 0x8000_0b0dn]],
      ['INVD', [0x76n, 0n, 0n, 0n, 0n, 0n], [0n, 0n]],
      ['MONITOR', [0x8an, 0n, 0n, 0n, 0n, 0n], [0n, 0n]],
      ['MWAIT', [0x8bn, 0n, 0n, 0n, 0n, 0n], [0n, 0n]],
      ['NMI complete', [0x8000_0003n, 0n, 0n, 0n, 0n, 0n], [0n, 0n]],
      ['AP jump table, set', [0x8000_0005n, 0n, 0x7000n, 0n, 0n, 0n], [0n, 0n]],
      ['AP jump table, get', [0x8000_0005n, 1n, 0n, 0n, 0n, 0n], [0n, 0x7000n]],
      ['run VMPL', [0x8000_0018n, 0n, 0n, 0n, 0n, 0n], [2n, 6n]],
    ];
    const FIELDS = [0x390, 0x398, 0x3a0, 0x1f8, 0x308, 0x310];
    const put = (at: number, value: bigint) => [set('rax', value), store('rdi', 'rax', at)];
    const snp = new SnpVm().launch([
      ...ghcbMsr(BigInt(GHCB) | 0x12n),
      set('rcx', 0xc0010130),
      set('rax', GHCB),
      set('rdx', 0),
      op(Code.Wrmsr),
      ...EVENTS.flatMap(([, values], i) => [
        set('rdi', GHCB),
        ...FIELDS.flatMap((at, field) => put(at, values[field]!)),
        // RAX; RCX, RDX, and the code with its numbers.
        ...put(0x3f0, 1n << 63n),
        ...put(0x3f8, 0x001c_0006_0000_0000n),
        vmgexit(),
        load('rbx', 'rdi', 0x398),
        load('rdx', 'rdi', 0x3a0),
        set('rdi', SHARED + 16 * i),
        store('rdi', 'rbx'),
        store('rdi', 'rdx', 8),
      ]),
      set('rdi', GHCB),
      ...put(0x390, 0x8000_fffen),
      ...put(0x3f8, 0x001c_0000_0000_0000n),
      vmgexit(),
    ]);
    expect(snp.vcpu.run()).toBe(0);
    expect([snp.vcpu.kvmRun.exitReason, snp.vcpu.sev!.exits.systemEventData(0)]).toEqual([24, BigInt(GHCB)]);
    for (const [i, [name, , answer]] of EVENTS.entries())
      expect([name, snp.long(SHARED + 16 * i), snp.long(SHARED + 16 * i + 8)]).toEqual([name, ...answer]);
  });

  it('finds keys in its secrets page that nobody else knows', () => {
    const snp = new SnpVm().launch([
      set('rdi', SECRETS),
      load('rax', 'rdi'),
      set('rdi', SHARED),
      store('rdi', 'rax'),
      hlt(),
    ]);
    expect(snp.vcpu.run()).toBe(0);
    expect(snp.long(SHARED) & 0xffffffffn).toBe(3n);
    expect(snp.read(SECRETS, 4096)).toEqual(new Uint8Array(4096));
  });
});

describe('a VM of SNP’s type before KVM_SEV_INIT2', () => {
  it('has no private pages: a shared access to a private gfn leaves with MEMORY_FAULT, and no page is the guest’s by the RMP', () => {
    const snp = new SnpVm();
    const vcpu = snp.vm.createVcpu(0);
    snp.attributes(0, 0x10000, 8n);
    vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n });
    vcpu.setSregs({ ...vcpu.getSregs(), cs: { ...vcpu.getSregs().cs, base: 0n, selector: 0 } });
    expect(vcpu.run()).toBe(-14);
    expect([vcpu.kvmRun.exitReason, vcpu.kvmRun.memoryFaultFlags, vcpu.kvmRun.memoryFaultGpa]).toEqual([
      39,
      0n,
      0x1000n,
    ]);
    expect(() => vcpu.preFaultMemory({ gpa: 0x1000n, size: 0x1000n, flags: 0n })).toThrow('EOPNOTSUPP');
    expect(snp.kernel.memory.rmp!.assigned((snp.vm.mmu.lookup(1 as never)?.pfn ?? 0) as never)).toBe(false);
    vcpu.close();
  });
});

it('a vCPU of an SNP guest that finds no frame for its VMSA leaves no frame behind', () => {
  const snp = new SnpVm().init();
  const { memory } = snp.kernel;
  const owner = memory.owner('hog');
  const hog: number[] = [];
  for (let pfn = memory.allocate(0, owner); pfn >= 0; pfn = memory.allocate(0, owner)) hog.push(pfn);
  // Aligned blocks for the vCPU's own frames, but nothing beyond.
  const before = memory.usage().get('vCPU');
  let refused = 0;
  for (const pfn of hog.reverse()) {
    memory.free(pfn as never, 0);
    try {
      snp.vm.createVcpu(1);
      break;
    } catch {
      refused++;
      expect(memory.usage().get('vCPU')).toBe(before);
    }
  }
  expect(refused).toBeGreaterThan(10);
  for (const pfn of hog.slice(refused + 1)) memory.free(pfn as never, 0);
});
