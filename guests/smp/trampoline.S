# Where SIPI starts a processor: real mode at a page below 1 MiB. The boot processor copies this there and fills in CR3 and the entry's
# address. On the way: real mode, 32-bit protected mode, 64-bit mode; then `processor_entry`.

#include "limits.h"

        .section .rodata
        .balign 16
        .globl  trampoline, trampoline_end, trampoline_cr3
        .set    BASE, 0x8000

        .code16
trampoline:
        cli
        cld
        movw    %cs, %ax
        movw    %ax, %ds
        lgdtl   (gdt_pointer - trampoline)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $(BASE + protected - trampoline)

        .code32
protected:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        # PAE, OSFXSR, OSXMMEXCPT
        movl    $0x620, %eax
        movl    %eax, %cr4
        movl    (BASE + trampoline_cr3 - trampoline), %eax
        movl    %eax, %cr3
        # EFER.LME
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        # PG, WP, NE, ET, MP, PE
        movl    $0x80010033, %eax
        movl    %eax, %cr0
        ljmpl   $0x08, $(BASE + long_mode - trampoline)

        .code64
long_mode:
        movq    $processor_entry, %rax
        jmp     *%rax

        .balign 8
gdt:
        .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdt_pointer:
        .word   31
        .long   BASE + gdt - trampoline
        .balign 4
trampoline_cr3:
        .long   0
trampoline_end:

# 64-bit mode: a number for each start, a stack while there are any, and secondary().
        .text
        .globl  processor_entry
processor_entry:
        movl    $1, %edi
        lock xaddl %edi, next_processor(%rip)
        cmpl    $MAX_PROCESSORS, %edi
        ja      park
        shlq    $STACK_SHIFT, %rdi
        leaq    stacks(%rip), %rsp
        addq    %rdi, %rsp
        xorl    %ebp, %ebp
        call    secondary
        jmp     park

# One stub for each vector, 16 bytes apart: pushes a zero where the CPU pushes no error code, then the vector, and calls handle(frame).
        .globl  vectors
        .balign 16
vectors:
        .set    vector, 0
        .rept   256
        .balign 16
        .if     vector >= 32 || !((0x60227d00 >> (vector & 31)) & 1)
        pushq   $0
        .endif
        pushq   $vector
        jmp     common
        .set    vector, vector + 1
        .endr

common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %rbx
        movq    80(%rsp), %rdi
        movq    88(%rsp), %rsi
        movq    96(%rsp), %rdx
        movq    %rsp, %rbx
        andq    $-16, %rsp
        cld
        call    handle
        movq    %rbx, %rsp
        popq    %rbx
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp
        iretq

        .section .note.GNU-stack, "", @progbits
