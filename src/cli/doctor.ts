/**
 * `softcvm doctor`: what this machine offers. Only Node itself is needed; each other thing makes more possible, and a missing
 * one comes with a hint. /dev/kvm is asked through perl, since Node has no ioctl.
 */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { freemem, totalmem } from 'node:os';
import { isParavirtualKvm, PARAVIRTUAL_KVM } from '../linux/paravirtual-kvm.ts';

interface Finding {
  readonly name: string;
  /** `limited`: works, but less than it could. */
  readonly state: 'ok' | 'limited' | 'missing';
  readonly found: string;
  readonly hint?: string;
}

const GIB = 2 ** 30;
const gib = (bytes: number): string => `${(bytes / GIB).toFixed(1)} GiB`;

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

function node(): Finding {
  const major = Number(process.versions.node.split('.')[0]);
  const found = `${process.version}, V8 ${process.versions.v8}, ${process.platform} ${process.arch}`;
  return major >= 20
    ? { name: 'node', state: 'ok', found }
    : { name: 'node', state: 'missing', found, hint: 'install Node 20 or newer' };
}

/** Whether a shared memory of `bytes` can be made. */
function sharedMemory(bytes: number): boolean {
  try {
    new WebAssembly.Memory({ initial: bytes / 65536, maximum: bytes / 65536, shared: true });
    return true;
  } catch {
    return false;
  }
}

function hostMemory(): Finding {
  const largest = [4, 2, 1, 0.5, 0.25].find((size) => sharedMemory(size * GIB));
  if (largest === undefined) {
    return {
      name: 'host memory',
      state: 'missing',
      found: 'no shared WebAssembly.Memory of 256 MiB',
      hint: 'raise the limit of address space (ulimit -v unlimited)',
    };
  }
  const found = `one shared WebAssembly.Memory of up to ${largest} GiB`;
  return largest === 4
    ? { name: 'host memory', state: 'ok', found }
    : {
        name: 'host memory',
        state: 'limited',
        found,
        hint: 'raise the limit of address space (ulimit -v unlimited)',
      };
}

function ram(): Finding {
  const limits = ['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes']
    .map((path) => Number(read(path)))
    .filter((limit) => limit > 0 && limit < 2 ** 60);
  const limit = Math.min(totalmem(), ...limits);
  const found = `${gib(totalmem())}, ${gib(freemem())} free${limits.length > 0 ? `, control group allows ${gib(limit)}` : ''}`;
  return limit >= GIB
    ? { name: 'RAM', state: 'ok', found }
    : { name: 'RAM', state: 'limited', found, hint: 'guests share less than 1 GiB: keep --memory small' };
}

/** Capabilities of private memory: name, number. */
const CAPABILITIES = [
  ['USER_MEMORY2', 231],
  ['MEMORY_FAULT_INFO', 232],
  ['MEMORY_ATTRIBUTES', 233],
  ['GUEST_MEMFD', 234],
  ['VM_TYPES', 235],
  ['PRE_FAULT_MEMORY', 236],
  ['GUEST_MEMFD_FLAGS', 244],
] as const;

const ASK_KVM = `
  open(my $kvm, '+<', '/dev/kvm') or die "$!\\n";
  print int(ioctl($kvm, 0xae00, 0) // -1), "\\n";
  for my $number (@ARGV) { print int(ioctl($kvm, 0xae03, $number + 0) // -1), "\\n" }
`;

function realKvm(): Finding {
  const name = '/dev/kvm';
  if (!existsSync(name)) {
    return {
      name,
      state: 'missing',
      found: 'absent',
      hint: 'not needed; to compare with the real kernel, load kvm_amd or kvm_intel',
    };
  }
  try {
    accessSync(name, constants.R_OK | constants.W_OK);
  } catch {
    return { name, state: 'limited', found: 'present, no access', hint: 'join the group that owns /dev/kvm' };
  }
  const numbers = CAPABILITIES.map(([, number]) => String(number));
  const asked = spawnSync('perl', ['-e', ASK_KVM, ...numbers], { encoding: 'utf8' });
  if (asked.error !== undefined) {
    return { name, state: 'limited', found: 'present, not asked for its capabilities', hint: 'install perl' };
  }
  if (asked.status !== 0)
    return { name, state: 'limited', found: `present, cannot be opened: ${asked.stderr.trim()}` };
  const [version, ...answers] = asked.stdout.trim().split('\n').map(Number);
  const there = CAPABILITIES.flatMap(([capability], i) =>
    answers[i]! > 0 ? [`${capability} ${answers[i]}`] : [],
  );
  const found = `API ${version}; ${there.length > 0 ? there.join(', ') : 'no capability of private memory'}`;
  const attributes = answers[CAPABILITIES.findIndex(([capability]) => capability === 'MEMORY_ATTRIBUTES')]!;
  return attributes > 0
    ? { name, state: 'ok', found }
    : {
        name,
        state: 'limited',
        found,
        hint: isParavirtualKvm()
          ? PARAVIRTUAL_KVM
          : 'no private memory in this kernel; it needs Linux 6.8 with KVM_SW_PROTECTED_VM',
      };
}

function seccomp(): Finding {
  const actions = read('/proc/sys/kernel/seccomp/actions_avail');
  if (actions === undefined) {
    return {
      name: 'seccomp',
      state: 'missing',
      found: 'absent',
      hint: 'not needed to run guests; needs a Linux kernel with CONFIG_SECCOMP_FILTER',
    };
  }
  return actions.includes('user_notif')
    ? { name: 'seccomp', state: 'ok', found: `filters with ${actions.split(' ').join(', ')}` }
    : {
        name: 'seccomp',
        state: 'limited',
        found: actions,
        hint: 'user_notif is missing: Linux 5.0 or newer has it',
      };
}

function program(name: string, arguments_: string[], why: string, packageName: string): Finding {
  const asked = spawnSync(name, arguments_, { encoding: 'utf8' });
  return asked.error === undefined && asked.status === 0
    ? { name, state: 'ok', found: asked.stdout.split('\n')[0]! }
    : { name, state: 'missing', found: 'absent', hint: `only ${why}: apt-get install ${packageName}` };
}

/** Prints what it finds; throws nothing. */
export function doctor(options: { json?: boolean }): void {
  const findings = [
    node(),
    hostMemory(),
    ram(),
    realKvm(),
    seccomp(),
    program('gcc', ['--version'], 'to rebuild the guests', 'gcc'),
    program('make', ['--version'], 'to rebuild the guests', 'make'),
    program('qemu-system-x86_64', ['--version'], 'to compare speed', 'qemu-system-x86'),
  ];
  if (options.json === true) {
    console.log(JSON.stringify(findings));
    return;
  }
  const width = Math.max(...findings.map(({ name }) => name.length));
  for (const { name, state, found, hint } of findings) {
    console.log(`${state.padEnd(7)}  ${name.padEnd(width)}  ${found}`);
    if (hint !== undefined) console.log(`${''.padEnd(7)}  ${''.padEnd(width)}  hint: ${hint}`);
  }
}
